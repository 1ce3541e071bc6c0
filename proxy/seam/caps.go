package seam

import (
	"slices"
	"strings"
)

// Caps is a list of capabilities, mechanisms or extensions; upper and lower case
// are one.
type Caps []string

// Has reports whether a word is in the list.
func (c Caps) Has(word string) bool {
	return slices.ContainsFunc(c, func(x string) bool { return strings.EqualFold(x, word) })
}

// Cut keeps those that are allowed, as they are written in c.
func (c Caps) Cut(allowed Caps) Caps {
	var out Caps
	for _, x := range c {
		if allowed.Has(x) {
			out = append(out, x)
		}
	}
	return out
}

// String lists them as a server does.
func (c Caps) String() string { return strings.Join(c, " ") }
