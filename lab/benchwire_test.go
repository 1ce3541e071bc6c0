package lab

import (
	"context"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"understudy/lab/hosts"
	"understudy/replica/imapc"
)

// TestBench_Wire compares the same cable without the box, with the box as a bridge
// (bypass), and with the mail ports diverted.
func TestBench_Wire(t *testing.T) {
	if os.Getenv("UNDERSTUDY_BENCH") == "" {
		return
	}
	n := newNetwork(t)
	n.serve(t, 1)
	u := n.site.Users[0]
	n.plug(t, map[string]string{"mirror.idle": "0", "mirror.sweep": `"0s"`})
	n.armed(t)
	waitPhase(t, n.b, "protecting")
	big := message("big", 40<<20)
	c := login(t, n.client, server4, u)
	if _, _, err := c.Append(imapc.Appending{Mailbox: "INBOX", Body: big}); err != nil {
		t.Fatal(err)
	}
	blob := make([]byte, 64<<20)
	accepting(t, n.server, ":8080", func(c net.Conn) { _, _ = c.Write(blob) })
	type figures struct{ fetch, bulk, one, many float64 }
	measure := func(name, addr string) figures {
		f := figures{fetch: fetchRate(t, n, addr, u, len(big)), bulk: bulkRate(t, n.client, addr, len(blob)),
			one: connRate(n.client, addr, 1), many: connRate(n.client, addr, 8)}
		t.Logf("%-22s %s: FETCH %5.0f MB/s, another port %6.0f MB/s, connections+banner+QUIT %5.0f/s one by one, "+
			"%5.0f/s with 8 at a time", name, addr, f.fetch, f.bulk, f.one, f.many)
		return f
	}
	for _, addr := range []string{server4, server6} {
		div := measure("diverted", addr)
		order(t, n.b, "network", "bypass", "on")
		bri := measure("bridged (bypass)", addr)
		order(t, n.b, "network", "bypass", "off")
		// A plain cable beside the box, which is unplugged meanwhile.
		check(t, n.lan.Up("box", false))
		check(t, hosts.Cable(n.cable, "up", n.lan, "down"))
		check(t, n.lan.Join("down"))
		check(t, n.cable.Join("up"))
		time.Sleep(time.Second)
		dir := measure("without the box", addr)
		check(t, n.lan.Unplug("down"))
		check(t, n.lan.Up("box", true))
		time.Sleep(time.Second)
		t.Logf("%s, of the rate without the box: bridged FETCH %.2f, other port %.2f, connections %.2f / %.2f; "+
			"diverted FETCH %.2f, other port %.2f, connections %.2f / %.2f", addr,
			bri.fetch/dir.fetch, bri.bulk/dir.bulk, bri.one/dir.one, bri.many/dir.many,
			div.fetch/dir.fetch, div.bulk/dir.bulk, div.one/dir.one, div.many/dir.many)
	}
}

// wireRounds are interleaved over two binaries.
const wireRounds = 3

// TestBench_WireBefore compares the diverted cable with an older binary's, round by
// round.
func TestBench_WireBefore(t *testing.T) {
	before := os.Getenv("UNDERSTUDY_BEFORE")
	if os.Getenv("UNDERSTUDY_BENCH") == "" || before == "" {
		return
	}
	n := newNetwork(t)
	n.serve(t, 1)
	u, big := n.site.Users[0], message("big", 40<<20)
	ways := []way{{name: thisBox}, {name: beforeBox}}
	rows := []struct {
		name string
		run  rowWork
	}{
		{"diverted FETCH MB/s", func(t *testing.T, _ way) (float64, time.Duration) {
			mb := float64(len(big)) / 1e6
			return mb, time.Duration(mb / fetchRate(t, n, server4, u, len(big)) * float64(time.Second))
		}},
		{"diverted connections /s", func(_ *testing.T, _ way) (float64, time.Duration) {
			return 3 * connRate(n.client, server4, 1), 3 * time.Second
		}},
	}
	got := [][]column{make([]column, 2), make([]column, 2)}
	for round := range 2 * wireRounds {
		i := (round + round/2) % 2 // new, old, old, new
		n.binary = []string{binary, before}[i]
		n.plug(t, map[string]string{"mirror.idle": "0", "mirror.sweep": `"0s"`})
		n.armed(t)
		waitPhase(t, n.b, "protecting")
		if round == 0 {
			c := login(t, n.client, server4, u)
			_, _, err := c.Append(imapc.Appending{Mailbox: "INBOX", Body: big})
			check(t, err)
		}
		ways[i].pid = n.b.Pid()
		for r, row := range rows {
			got[r][i] = append(got[r][i], ways[i].measured(t, row.run))
		}
		check(t, n.b.Stop())
	}
	for r, row := range rows {
		printRow(row.name, ways, got[r])
	}
}

// best is the best of three, in MB/s.
func best(t *testing.T, size int, f func() error) float64 {
	t.Helper()
	var rate float64
	for range 3 {
		began := time.Now()
		check(t, f())
		rate = max(rate, float64(size)/1e6/time.Since(began).Seconds())
	}
	return rate
}

func fetchRate(t *testing.T, n *network, addr, user string, size int) float64 {
	t.Helper()
	c := login(t, n.client, addr, user)
	defer c.Close()
	do(t, c, "SELECT INBOX")
	return best(t, size, func() error {
		return c.Fetch("1", "(UID BODY.PEEK[])", func(imapc.Message) error { return nil })
	})
}

func bulkRate(t *testing.T, h *hosts.Host, addr string, size int) float64 {
	t.Helper()
	return best(t, size, func() error {
		c, err := h.Dial(context.Background(), at(addr, 8080))
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		_, err = io.Copy(io.Discard, c)
		return err
	})
}

// connRate is how many SMTP connections a second say hello and goodbye.
func connRate(h *hosts.Host, addr string, workers int) float64 {
	var done atomic.Int64
	var wait sync.WaitGroup
	end := time.Now().Add(3 * time.Second)
	for range workers {
		wait.Go(func() {
			_ = h.Do(func() error { // one thread for all of a worker's connections
				for time.Now().Before(end) {
					if hello(at(addr, 25)) == nil {
						done.Add(1)
					}
				}
				return nil
			})
		})
	}
	wait.Wait()
	return float64(done.Load()) / 3
}

func hello(addr string) error {
	c, err := dialer.Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	b := make([]byte, 512)
	if _, err := c.Read(b); err != nil {
		return err
	}
	if _, err := io.WriteString(c, "QUIT\r\n"); err != nil {
		return err
	}
	_, err = c.Read(b)
	return err
}

var dialer = net.Dialer{Timeout: 5 * time.Second}
