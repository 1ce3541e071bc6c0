package route

import (
	"path/filepath"
	"strings"
	"testing"

	"understudy/replica/meta"
	"understudy/replica/row"
)

type names []string

func (n names) Resolve(user string) (string, bool) {
	for _, x := range n {
		if strings.EqualFold(x, user) {
			return x, true
		}
	}
	return "", false
}

// D5, T8: mail goes by what was learned, then by names, then by the name without its
// detail; what was learned is there after a start, and after another load.
func TestRouteOf(t *testing.T) {
	rows, err := meta.OpenBolt(filepath.Join(t.TempDir(), "rows.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = rows.Close() }()
	of := names{"Ada", "bob@d.test"}
	r := New(of, []string{"d.test"})
	alias := row.Route{Recipient: "alias@d.test", Account: "Ada", Mailbox: "Lists"}
	var b meta.Batch
	b.PutJSON(meta.RouteKey(alias.Recipient), alias)
	if _, err := rows.Commit(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	if _, ok := r.RouteOf("alias@d.test"); ok {
		t.Error("shown before it was told")
	}
	r.Show([]row.Route{alias})
	again := New(of, []string{"d.test"})
	again.Show([]row.Route{{Recipient: "gone@d.test", Account: "Ada"}})
	if err := rows.View(again.Load); err != nil {
		t.Fatal(err)
	}
	for _, x := range []*Routes{r, again} {
		for rcpt, want := range map[string]string{
			"Alias@D.test": "Ada Lists", "alias+x@d.test": "Ada Lists", "ada@d.test": "Ada INBOX", "ADA": "Ada INBOX",
			"ada+lists@d.test": "Ada INBOX",
			"bob@d.test":       "bob@d.test INBOX", "ada@elsewhere.test": " ", "nobody@d.test": " ", "gone@d.test": " ",
			"+@d.test": " ",
		} {
			got, ok := x.RouteOf(rcpt)
			if got.Account+" "+got.Mailbox != want || ok != (want != " ") {
				t.Errorf("%s: %+v, %v", rcpt, got, ok)
			}
		}
		if all := x.AllRoutes(); len(all) != 1 || all[0] != alias {
			t.Errorf("%+v", all)
		}
	}
}
