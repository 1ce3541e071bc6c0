package lab

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"regexp"
	"strings"
	"sync"
	"testing"
)

// downloads carries a client's connections, and counts which messages, or headers
// of messages, it was sent.
type downloads struct {
	l *net.TCPListener

	mu    sync.Mutex
	times map[string]int // by mailbox and UID
}

var (
	selecting = regexp.MustCompile(`(?i)^\S+ (?:SELECT|EXAMINE) (.+?)\r?\n`)
	sending   = regexp.MustCompile(`^\* \d+ FETCH \(.*\bBODY\[.*\{(\d+)\}\r\n$`)
	numbered  = regexp.MustCompile(`\bUID (\d+)`)
)

func watchDownloads(t *testing.T, to string) *downloads {
	t.Helper()
	d := &downloads{l: must(net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)}))(t), times: map[string]int{}}
	t.Cleanup(func() { _ = d.l.Close() })
	go func() {
		for {
			c, err := d.l.Accept()
			if err != nil {
				return
			}
			s, err := net.Dial("tcp", to)
			if err != nil {
				_ = c.Close()
				continue
			}
			go d.carry(c, s)
		}
	}()
	return d
}

func (d *downloads) carry(c, s net.Conn) {
	defer func() { _ = c.Close(); _ = s.Close() }()
	var mu sync.Mutex
	mailbox := ""
	go func() {
		defer func() { _ = c.Close(); _ = s.Close() }()
		r := bufio.NewReader(c)
		for {
			l, err := r.ReadString('\n')
			if m := selecting.FindStringSubmatch(l); m != nil {
				mu.Lock()
				mailbox = strings.Trim(m[1], `"`)
				mu.Unlock()
			}
			if _, werr := io.WriteString(s, l); err != nil || werr != nil {
				return
			}
		}
	}()
	r := bufio.NewReader(s)
	for {
		l, err := r.ReadString('\n')
		if _, werr := io.WriteString(c, l); err != nil || werr != nil {
			return
		}
		m := sending.FindStringSubmatch(l)
		if m == nil {
			continue
		}
		n := int64(0)
		_, _ = fmt.Sscan(m[1], &n)
		if _, err := io.CopyN(c, r, n); err != nil {
			return
		}
		uid := numbered.FindStringSubmatch(l)
		if uid == nil {
			uid = []string{"", "without UID: " + l}
		}
		mu.Lock()
		key := mailbox + " " + uid[1]
		mu.Unlock()
		d.mu.Lock()
		d.times[key]++
		d.mu.Unlock()
	}
}

// once fails the test if something was sent twice.
func (d *downloads) once(t *testing.T, client string) {
	t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	again, n := 0, 0
	for key, times := range d.times {
		if n++; times > 1 {
			if again++; again < 5 {
				t.Errorf("%s was sent %s %d times", client, key, times)
			}
		}
	}
	t.Logf("%s was sent %d messages or headers, %d of them again", client, n, again)
	if n == 0 {
		t.Errorf("%s was sent nothing", client)
	}
}
