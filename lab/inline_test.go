package lab

import (
	"testing"
)

func TestT1_Walk(t *testing.T) {
	n := newNetwork(t)
	n.serve(t, 1)
	n.plug(t, nil)
	t.Log(n.b.Run(t.Context(), "network", "plan"))
	n.armed(t)
	for _, a := range []string{server4, server6} {
		c := login(t, n.client, a, n.site.Users[0])
		do(t, c, "SELECT INBOX")
		c = login(t, n.remote, a, n.site.Users[0])
		do(t, c, "SELECT INBOX")
	}
	t.Log(n.site.Log())
}
