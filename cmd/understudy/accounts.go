package main

import (
	"fmt"
	"io"
	"text/tabwriter"

	"understudy/console/api"
)

func accounts(e env) error {
	return read(e, "accounts", "/v1/accounts", func(w io.Writer, l []api.Account) {
		tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
		fmt.Fprintln(tw, "ACCOUNT\tANSWERING\tMAILBOXES\tMESSAGES\tSYNCED\tPROBLEM")
		for _, a := range l {
			fmt.Fprintf(tw, "%s\t%s\t%d\t%d\t%s\t%s\n", a.Name, a.Answering, a.Mailboxes, a.Messages, when(a.LastSync),
				a.LastErr)
		}
		_ = tw.Flush()
	})
}
