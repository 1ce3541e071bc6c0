package main

import (
	"fmt"
	"io"
)

func fingerprint(e env) error {
	return read(e, "fingerprint", "/v1/fingerprint", func(w io.Writer, l []string) {
		for _, line := range l {
			fmt.Fprintln(w, line)
		}
	})
}
