package main

import (
	"fmt"

	"understudy/failover"
)

func diagram(e env) error {
	fs := e.flags("diagram", "")
	if err := e.parse(fs, 0); err != nil {
		return err
	}
	fmt.Fprint(e.out, failover.Diagram())
	return nil
}
