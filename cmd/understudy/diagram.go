package main

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"understudy/failover"
	"understudy/replica/row"
	"understudy/snoop/imapsession"
	"understudy/snoop/smtpsession"
)

// diagrams are the tables that draw themselves.
func diagrams() map[string]func() string {
	return map[string]func() string{"failover": failover.Diagram, "held": row.HeldDiagram, "doubt": row.DoubtDiagram,
		"imapsession": imapsession.Diagram, "smtpsession": smtpsession.Diagram}
}

func diagram(e env) error {
	fs := e.flags("diagram", "[table]")
	if err := e.parse(fs, 1); err != nil {
		return err
	}
	all := diagrams()
	draw := all[cmp.Or(fs.Arg(0), "failover")]
	if draw == nil {
		return fmt.Errorf("%w: the tables are %s", errUsage, strings.Join(slices.Sorted(maps.Keys(all)), ", "))
	}
	fmt.Fprint(e.out, draw())
	return nil
}
