// Package lab holds the tests that need a whole site: real Dovecot and Postfix,
// and the real binary before them.
package lab

import (
	"context"
	"fmt"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"understudy/lab/site"
	"understudy/replica/imapc"
)

var binary string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		if os.Geteuid() != 0 {
			log.Print("the lab runs Dovecot and Postfix and needs root")
			return 1
		}
		dir, err := os.MkdirTemp("", "understudy-lab-")
		if err != nil {
			log.Print(err)
			return 1
		}
		defer func() { _ = os.RemoveAll(dir) }()
		if err := os.Chmod(dir, 0o755); err != nil { // it also runs as another user
			log.Print(err)
			return 1
		}
		binary = filepath.Join(dir, "understudy")
		args := []string{"build", "-o", binary, "understudy/cmd/understudy"}
		if os.Getenv("UNDERSTUDY_RACE") != "" {
			args = append([]string{"build", "-race"}, args[1:]...)
		}
		if out, err := exec.Command("go", args...).CombinedOutput(); err != nil {
			log.Printf("build: %v: %s", err, out)
			return 1
		}
		return m.Run()
	}())
}

func users(n int) []string {
	var out []string
	for i := range n {
		out = append(out, fmt.Sprintf("user%02d@%s", i+1, site.Domain))
	}
	return out
}

// newSite starts a site with n users; it ends with the test.
func newSite(t *testing.T, n int) *site.Site {
	t.Helper()
	return started(t, preparedSite(t, n))
}

func preparedSite(t *testing.T, n int) *site.Site {
	t.Helper()
	u := users(n)
	s, err := site.New(t.TempDir(), u, map[string]string{"info@" + site.Domain: u[0], "sales@" + site.Domain: u[n-1]})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func started(t *testing.T, s *site.Site) *site.Site {
	t.Helper()
	if err := s.Start(t.Context()); err != nil {
		t.Fatalf("%v\n%s", err, s.Log())
	}
	t.Cleanup(s.Stop)
	return s
}

// newBox starts an Understudy before s; it ends with the test.
func newBox(t *testing.T, s *site.Site, settings map[string]string) *site.Box {
	t.Helper()
	return newBoxOf(t, binary, s, settings)
}

// newBoxOf is newBox with another binary.
func newBoxOf(t *testing.T, binary string, s *site.Site, settings map[string]string) *site.Box {
	t.Helper()
	b, err := site.NewBox(t.TempDir(), binary, s, settings)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	endBox(t, b)
	return b
}

// endBox ends an Understudy with the test.
func endBox(t *testing.T, b *site.Box) {
	t.Cleanup(func() {
		b.Kill()
		if l := b.Log(); strings.Contains(l, "DATA RACE") {
			i := strings.Index(l, "DATA RACE")
			t.Errorf("the race detector found: %s", l[i:min(len(l), i+4000)])
		}
		if dir := os.Getenv("UNDERSTUDY_LOGS"); dir != "" {
			_ = os.WriteFile(filepath.Join(dir, strings.ReplaceAll(t.Name(), "/", "_")+".log"), []byte(b.Log()), 0o600)
		}
		if !t.Failed() {
			return
		}
		var l []string
		for line := range strings.Lines(b.Log()) {
			if !strings.Contains(line, "level=DEBUG") && !strings.Contains(line, "task is tried again") {
				l = append(l, line[:min(len(line), 300)])
			}
		}
		t.Logf("the last lines of understudy's log (UNDERSTUDY_LOGS=dir keeps all):\n%s",
			strings.Join(l[max(0, len(l)-40):], ""))
	})
}

func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func dial(t *testing.T, addr, user string) *imapc.Conn {
	t.Helper()
	c := must(site.Dial(t.Context(), addr, user))(t)
	t.Cleanup(c.Close)
	return c
}

func do(t *testing.T, c *imapc.Conn, format string, a ...any) {
	t.Helper()
	if _, err := c.Do(fmt.Sprintf(format, a...), nil); err != nil {
		t.Fatal(err)
	}
}

// waitPhase waits for a phase of the failover.
func waitPhase(t *testing.T, b *site.Box, phases ...string) {
	t.Helper()
	if _, err := b.WaitPhase(context.Background(), 90*time.Second, phases...); err != nil {
		t.Fatal(err)
	}
}

func order(t *testing.T, b *site.Box, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	return strings.TrimSpace(must(b.Run(ctx, args...))(t))
}

// fingerprint of an account at an address.
func fingerprint(t *testing.T, addr, user string) site.Fingerprint {
	t.Helper()
	c := must(site.Dial(t.Context(), addr, user))(t)
	defer c.Close()
	return must(site.Take(c))(t)
}

func direct(s *site.Site) string { return fmt.Sprintf("127.0.0.1:%d", s.IMAPPort) }
