package meta

import (
	"bytes"
	"strings"
	"testing"

	"understudy/replica/row"
)

// No kind of row lies in the range of another one, so that a scan or a deletion of
// one kind can never reach another.
func TestPrefixes(t *testing.T) {
	for _, p := range prefixes() {
		from, to := Range([]byte(p))
		for _, q := range prefixes() {
			if p == q {
				continue
			}
			if strings.HasPrefix(q, p) {
				t.Errorf("prefix %q begins with %q", q, p)
			}
			for _, k := range [][]byte{[]byte(q), append([]byte(q), 0xff, 0xff)} {
				if bytes.Compare(k, from) >= 0 && bytes.Compare(k, to) < 0 {
					t.Errorf("a key of %q is in the range of %q", q, p)
				}
			}
		}
	}
}

// The keys are those of directories that exist.
func TestKeys(t *testing.T) {
	box, uid := row.MailboxID(0x01020304), uint32(0x05060708)
	for want, got := range map[string][]byte{
		"a/Ada":                                     AccountKey("Ada"),
		"m/Ada\x00\x01\x02\x03\x04":                 MailboxKey("Ada", box),
		"r/Ada\x00\x01\x02\x03\x04\x05\x06\a\b":     RowKey("Ada", box, uid),
		"B/Ada\x00\x01\x02\x03\x04":                 BaseMailboxKey("Ada", box),
		"b/Ada\x00\x01\x02\x03\x04\x05\x06\a\b":     BaseRowKey("Ada", box, uid),
		"b/Ada\x00":                                 BaseMessagesOf("Ada"),
		"z/Ada\x00\x00\x00\x00\x00\x00\x00\x00\t":   DoubtKey("Ada", 9),
		"d/\x00\x00\x00\x00\x00\x00\x00\t":          HeldKey(9),
		"x/\x00\x00\x00\x00\x00\x00\x00\t":          TwinKey(9),
		"q/\x00\x00\x00\x00\x00\x00\x00\t":          QueueKey(9),
		"rt/a@d.test":                               RouteKey("a@d.test"),
		"t/sweep\x00\x00\x00\x00\x00\x00\x00\x00\t": TaskKey("sweep", 9),
		"v/ada":      VerifierKey("ada"),
		"s/failover": StateKey("failover"),
		"e/epoch":    EpochKey(),
	} {
		if string(got) != want {
			t.Errorf("key %q, want %q", got, want)
		}
	}
	if QueueID(QueueKey(77)) != 77 {
		t.Error("the number of a queue key is not read back")
	}
	// The range of one account or mailbox holds nothing of another one.
	for _, p := range [][]byte{MailboxesOf("Ada"), RowsOf("Ada", uint32(1)), TasksOf("a")} {
		from, to := Range(p)
		for _, k := range [][]byte{MailboxKey("Ad", uint32(1)), MailboxKey("Adam", uint32(1)),
			RowKey("Ada", uint32(2), 0),
			RowKey("Ada", uint32(0), 1<<31), TaskKey("ab", 0)} {
			if bytes.Compare(k, from) >= 0 && bytes.Compare(k, to) < 0 {
				t.Errorf("%q is in the range of %q", k, p)
			}
		}
	}
}
