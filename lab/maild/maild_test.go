package maild

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"testing"
	"testing/synctest"

	"understudy/proxy"
	"understudy/replica/imapc"
)

// What it answered OK for is there when its directory is opened again; the master
// may log in as a user, and nobody else may.
func TestServer(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) { server(t, dir) })
}

func server(t *testing.T, dir string) {
	for turn := range 2 {
		s, err := New(t.Context(), Options{Dir: dir, Domain: "d.test", Users: map[string]string{"ada@d.test": "secret"},
			Master: "master", MasterPassword: "m", Greeting: "Ready.", Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		login := func(auth, password string) (*imapc.Conn, error) {
			near, far := net.Pipe()
			go s.ServeConn(ctx, far, proxy.IMAP)
			c, err := imapc.New(ctx, near, imapc.Options{})
			if err != nil {
				t.Fatal(err)
			}
			return c, c.Login("ada@d.test", auth, password)
		}
		for _, wrong := range [][2]string{{"", "m"}, {"ada@d.test", ""}, {"eve@d.test", "m"}, {"master", "secret"}} {
			c, err := login(wrong[0], wrong[1])
			if !errors.Is(err, imapc.ErrAuth) {
				t.Errorf("%q: %v", wrong, err)
			}
			c.Close()
		}
		for n, right := range [][2]string{{"", "secret"}, {"master", "m"}} {
			c, err := login(right[0], right[1])
			if err != nil {
				t.Fatal(err)
			}
			if sel, err := c.Select("INBOX", false); err != nil || sel.Exists != 2*turn+n {
				t.Errorf("turn %d: %+v, %v", turn, sel, err)
			}
			letter := imapc.Appending{Mailbox: "INBOX", Body: []byte("Subject: x\r\n\r\ny\r\n")}
			if _, _, err := c.Append(letter); err != nil {
				t.Error(err)
			}
			c.Logout()
			c.Close()
		}
		cancel()
		synctest.Wait()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}
