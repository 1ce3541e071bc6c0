package imap

import (
	"bufio"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"

	"understudy/proxy/upstream"
)

// B2: Cyrus leaves a message that another session has expunged out of a search
// while it still numbers it; the list is taken when both agree.
func TestB2_SearchAheadOfNumbers(t *testing.T) {
	ours, theirs := net.Pipe()
	defer func() { _ = ours.Close() }()
	go func() {
		defer func() { _ = theirs.Close() }()
		answers := map[string][]string{
			"UID SEARCH ALL": {"* SEARCH 9 4", "* SEARCH 9 4\r\n* 3 EXISTS", "* SEARCH 11 9 4"},
			"NOOP":           {"* 2 EXPUNGE", "* OK still here"},
		}
		for r := bufio.NewScanner(theirs); r.Scan(); {
			tag, text, _ := strings.Cut(r.Text(), " ")
			if len(answers[text]) == 0 {
				return
			}
			_, _ = fmt.Fprintf(theirs, "%s\r\n%s OK done\r\n", answers[text][0], tag)
			answers[text] = answers[text][1:]
		}
	}()
	ic := upstream.NewIMAP(ours, nil)
	if uids, err := listUIDs(ic, 3); err != nil || !slices.Equal(uids, []uint32{4, 9, 11}) {
		t.Errorf("%v, %v", uids, err)
	}
}
