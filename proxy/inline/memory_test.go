package inline

import (
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"understudy/proxy/seam"
)

// N33: what is fenced is so again after the process, or the machine, fell; a file
// that cannot be read is no reason to let production in.
func TestN33_FenceIsRemembered(t *testing.T) {
	path := filepath.Join(t.TempDir(), "network.json")
	w := &Wire{opt: Options{Memory: path, Log: slog.New(slog.DiscardHandler)}, mu: seam.NewTurn(),
		diversion: diversion{site: testSite()}}
	w.site.Fenced, w.site.NewMAC = true, net.HardwareAddr{2, 0, 0, 0, 0, 0x11}
	if err := w.save(7); err != nil {
		t.Fatal(err)
	}
	s := testSite()
	s.MAC = nil
	m, err := Remember(path, &s)
	if err != nil || m.Epoch != 7 || !s.Fenced || s.MAC.String() != "02:00:00:00:00:10" ||
		s.NewMAC.String() != "02:00:00:00:00:11" {
		t.Errorf("remembered %+v %+v %v", m, s, err)
	}
	for _, bad := range []string{"", "{", `{"fenced": true, "mac": "x"}`} {
		if err := os.WriteFile(path, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		s := Site{}
		if _, err := Remember(path, &s); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}
