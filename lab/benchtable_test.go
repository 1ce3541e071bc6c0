package lab

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// way is one way to production: direct, through the box, or through a peer.
type way struct {
	name                        string
	imap, imapTLS, smtp, submit string
	users                       []string
	pid                         int // of the process that is measured; 0: none
}

// sample is one measurement: how much was done in which time, and what it cost the
// way's process.
type sample struct {
	done float64
	took time.Duration
	cpu  time.Duration
}

func (s sample) rate() float64 { return s.done / s.took.Seconds() }

// each is the processor time of one operation, in microseconds.
func (s sample) each() float64 { return float64(s.cpu.Microseconds()) / max(s.done, 1) }

// clockTick is the unit of /proc/pid/stat: the kernel shows hundredths whatever it
// counts in.
const clockTick = 10 * time.Millisecond

// processorTime is what a process has used; 0 if there is none.
func processorTime(pid int) time.Duration {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	// Fields are counted behind the name, which may hold anything: proc(5).
	_, rest, _ := strings.Cut(string(b[strings.LastIndexByte(string(b), ')'):]), " ")
	f := strings.Fields(rest)
	if len(f) < 13 {
		return 0
	}
	user, _ := strconv.Atoi(f[11])
	system, _ := strconv.Atoi(f[12])
	return time.Duration(user+system) * clockTick
}

// measured runs a row through a way.
func (w way) measured(t *testing.T, run rowWork) (s sample) {
	t.Helper()
	before := processorTime(w.pid)
	s.done, s.took = run(t, w)
	s.cpu = processorTime(w.pid) - before
	return s
}

// spread is the median of some numbers, with the least and the largest.
type spread struct{ low, middle, high float64 }

func spreadOf(all []float64) spread {
	s := slices.Sorted(slices.Values(all))
	return spread{s[0], s[len(s)/2], s[len(s)-1]}
}

func (s spread) String() string { return fmt.Sprintf("%.2f (%.2f–%.2f)", s.middle, s.low, s.high) }

// column is all samples of a row through one way.
type column []sample

func (c column) of(f func(sample) float64) []float64 {
	var out []float64
	for _, s := range c {
		out = append(out, f(s))
	}
	return out
}

// against compares two columns round by round.
func (c column) against(other column, f func(sample) float64) (spread, bool) {
	var out []float64
	for i := range c {
		if b := f(other[i]); b > 0 {
			out = append(out, f(c[i])/b)
		}
	}
	if len(out) == 0 {
		return spread{}, false
	}
	return spreadOf(out), true
}

// printRow writes a row: the first way's rate, the others' as ratios to it, and what an
// operation costs those that were measured. Of two binaries the newer is compared
// with the older round by round.
func printRow(name string, ways []way, got []column) {
	line := fmt.Sprintf("%-38s", name)
	base := 0.0
	for i, w := range ways {
		m := spreadOf(got[i].of(sample.rate)).middle
		switch {
		case m == 0:
			line += fmt.Sprintf("  %s –", w.name)
		case base == 0:
			base = m
			line += fmt.Sprintf("  %s %.0f", w.name, m)
		default:
			line += fmt.Sprintf("  %s %.2f", w.name, m/base)
		}
		if cpu := spreadOf(got[i].of(sample.each)); cpu.high > 0 {
			line += fmt.Sprintf(" (cpu %.0f µs)", cpu.middle)
		}
	}
	named := func(name string) int { return slices.IndexFunc(ways, func(w way) bool { return w.name == name }) }
	newer, older := named(thisBox), named(beforeBox)
	if older >= 0 {
		rate, ok := got[newer].against(got[older], sample.rate)
		if ok {
			line += fmt.Sprintf("  new/old: rate %s", rate)
		}
		if cpu, ok := got[newer].against(got[older], sample.each); ok {
			line += fmt.Sprintf(", cpu %s", cpu)
		}
	}
	fmt.Println(line)
}

// The table's words are of a process that was measured, and of one that ended.
func TestProcessorTime(t *testing.T) {
	began := processorTime(os.Getpid())
	for end := time.Now().Add(10 * time.Second); processorTime(os.Getpid())-began < 2*clockTick; {
		if time.Now().After(end) {
			t.Fatal("this process works, and uses no time")
		}
	}
	if d := processorTime(-1); d != 0 {
		t.Errorf("no process used %s", d)
	}
	c := column{{done: 10, took: time.Second, cpu: time.Second}, {done: 30, took: time.Second, cpu: time.Second}}
	o := column{{done: 10, took: time.Second}, {done: 10, took: time.Second}}
	if s, ok := c.against(o, sample.rate); !ok || s != (spread{1, 3, 3}) {
		t.Errorf("%v", s)
	}
	if _, ok := c.against(o, sample.each); ok {
		t.Error("compared with what was not measured")
	}
}
