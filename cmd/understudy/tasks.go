package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"understudy/replica/row"
)

func tasks(e env) error {
	return read(e, "tasks", "/v1/tasks", func(w io.Writer, l []row.Task) {
		tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
		fmt.Fprintln(tw, "JOB\tTASK\tKIND\tSTATE\tACCOUNT\tMAILBOX\tUID\tDONE\tTRY\tERROR")
		totals := map[row.TaskState]int{}
		for _, t := range l {
			totals[t.State]++
			fmt.Fprintf(tw, "%s\t%d\t%s\t%s\t%s\t%s\t%d\t%d/%d\t%d\t%s\n", t.Job, t.Seq, t.Kind, t.State, t.Account,
				t.Mailbox, t.UID, t.Done, t.Total, t.Attempt, t.Err)
		}
		_ = tw.Flush()
		var sum []string
		for _, s := range []row.TaskState{row.TaskQueued, row.TaskLeased, row.TaskRetry, row.TaskParked, row.TaskDone,
			row.TaskSkipped} {
			if totals[s] > 0 {
				sum = append(sum, fmt.Sprintf("%d %s", totals[s], s))
			}
		}
		fmt.Fprintln(w, strings.Join(sum, ", "))
	})
}
