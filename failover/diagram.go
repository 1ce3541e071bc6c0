package failover

import (
	"fmt"
	"strings"
)

// Diagram draws the table as a Mermaid state diagram.
func Diagram() string {
	var b strings.Builder
	b.WriteString("stateDiagram-v2\n")
	id := func(p Phase) string { return strings.ReplaceAll(string(p), " ", "_") }
	fmt.Fprintf(&b, "    [*] --> %s\n", id(Seeding))
	for _, r := range Rules() {
		if r.From == r.To {
			continue
		}
		label := string(r.On)
		if r.If != "" {
			label += " [" + r.If + "]"
		}
		fmt.Fprintf(&b, "    %s --> %s: %s\n", id(r.From), id(r.To), label)
	}
	return b.String()
}
