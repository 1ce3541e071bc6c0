package main

import (
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"understudy/replica/row"
)

func lossesCmd(e env) error { return read(e, "losses", "/v1/losses", printLosses) }

func printLosses(w io.Writer, l row.Loss) {
	if l.Epoch == 0 {
		fmt.Fprintln(w, "no takeover took place")
		return
	}
	kind := "unplanned"
	if l.Planned {
		kind = "planned: everything was read before it"
	}
	fmt.Fprintf(w, "takeover %d at %s, %s\n", l.Epoch, l.At.Format(time.DateTime), kind)
	fmt.Fprintln(w, "\nmay be lacking, of what was seen here:")
	if len(l.May) == 0 {
		fmt.Fprintln(w, "  nothing")
	}
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	for _, m := range l.May {
		fmt.Fprintf(tw, "  %s\t%s\t%s\t%s\n", m.Account, m.Mailbox, m.MessageID, m.Why)
	}
	_ = tw.Flush()
	if len(l.Seen) > 0 {
		fmt.Fprintln(w, "\nwhat never crossed this box was read up to:")
	}
	for _, s := range l.Seen {
		until := "never whole"
		if !s.Until.IsZero() {
			until = fmt.Sprintf("%s (%s before)", s.Until.Format(time.DateTime), l.At.Sub(s.Until).Round(time.Second))
		}
		fmt.Fprintf(tw, "  %s\t%s\n", s.Account, until)
	}
	_ = tw.Flush()
	fmt.Fprintln(w, "\nwas lacking, found when production was back, and is in the mailboxes now:")
	if len(l.Lacked) == 0 {
		fmt.Fprintln(w, "  nothing so far")
	}
	for _, x := range l.Lacked {
		fmt.Fprintf(tw, "  %s\t%s\tUID %d\t%s\t%s\t%s\n", x.Account, x.Mailbox, x.UID, x.What, x.MessageID, x.Subject)
	}
	_ = tw.Flush()
	if l.More > 0 {
		fmt.Fprintf(w, "  and %d more\n", l.More)
	}
}
