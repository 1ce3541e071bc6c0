package health

import (
	"context"
	"fmt"
	"net"
	"os"
	"syscall"
	"testing"
)

func failing(errno syscall.Errno) Check {
	return Check{"X", func(context.Context) error {
		return fmt.Errorf("production: %w", &net.OpError{Op: "dial", Err: os.NewSyscallError("socket", errno)})
	}}
}

// N37: what this machine lacks says nothing of production; a refusal does, whatever
// else fails.
func TestN37_OwnTrouble(t *testing.T) {
	good := Check{"Y", func(context.Context) error { return nil }}
	for _, c := range []struct {
		name    string
		checks  []Check
		ok, own bool
	}{
		{"good", []Check{good}, true, false},
		{"no file descriptor", []Check{good, failing(syscall.EMFILE)}, false, true},
		{"no port", []Check{failing(syscall.EADDRNOTAVAIL), good}, false, true},
		{"a router forbids it (IPv6)", []Check{failing(syscall.EACCES)}, false, false},
		{"refused", []Check{failing(syscall.ECONNREFUSED), good}, false, false},
		{"refused, and no file descriptor", []Check{failing(syscall.ECONNREFUSED), failing(syscall.EMFILE)}, false,
			false},
		{"unreachable, and no file descriptor", []Check{failing(syscall.EMFILE), failing(syscall.EHOSTUNREACH)}, false,
			false},
	} {
		for range 20 { // the checks run side by side
			v := (&Prober{Checks: c.checks}).Probe(t.Context())
			if v.OK != c.ok || v.Own != c.own || v.Silent {
				t.Errorf("%s: %+v", c.name, v)
			}
		}
	}
}
