package main

import (
	"fmt"
	"io"
	"text/tabwriter"

	"understudy/replica/row"
)

func routes(e env) error {
	return read(e, "routes", "/v1/routes", func(w io.Writer, l []row.Route) {
		tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
		fmt.Fprintln(tw, "RECIPIENT\tACCOUNT\tMAILBOX\tLEARNED")
		for _, r := range l {
			fmt.Fprintf(tw, "%s\t%s\t%s\t%s\n", r.Recipient, r.Account, r.Mailbox, when(r.Learned))
		}
		_ = tw.Flush()
	})
}
