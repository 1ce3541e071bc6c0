// Command understudy is the one binary: the appliance itself (serve), its
// commands, and a demonstration. Each verb is a file; what it does to a running
// appliance it does over the control socket (ctl.go).
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"sort"
	"syscall"
)

// env is what a command works with.
type env struct {
	ctx    context.Context
	out    io.Writer
	errOut io.Writer
	args   []string
}

type command struct {
	help string
	run  func(env) error
}

func commands() map[string]command {
	return map[string]command{
		"serve":       {"run the appliance", serve},
		"demo":        {"show a full circle with an embedded mail server, without root", demo},
		"doctor":      {"check settings, production, certificates and disk before use", doctor},
		"status":      {"show which side answers, and the state of the replica", status},
		"takeover":    {"let the standby answer (planned, or to confirm)", takeover},
		"handback":    {"copy back and let production answer again", handback},
		"sync":        {"read from production now", syncNow},
		"acknowledge": {"acknowledge the last takeover, so that automatic works again", acknowledge},
		"tasks":       {"list the tasks of copying in and back", tasks},
		"losses":      {"show what the last takeover may have lost, and what it did", lossesCmd},
		"accounts":    {"list accounts", accounts},
		"routes":      {"list learned recipients", routes},
		"fingerprint": {"print what the replica holds of an account, to be compared", fingerprint},
		"scrub":       {"read every stored message and verify it", scrub},
		"config":      {"config describe | config check: the settings file", configCmd},
		"network":     {"show, make and remove what puts the box into the wire; go past it", networkCmd},
		"diagram":     {"print a table of states as a Mermaid diagram: failover, or the one named", diagram},
		"server":      {"run the demonstration's mail server", demoServer},
	}
}

// Exit codes.
const (
	exitError = 1
	exitUsage = 2
)

var errUsage = errors.New("usage")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(env{ctx, os.Stdout, os.Stderr, os.Args[1:]}))
}

func run(e env) int {
	if len(e.args) == 0 || e.args[0] == "help" || e.args[0] == "--help" || e.args[0] == "-h" {
		usage(e.out)
		if len(e.args) == 0 {
			return exitUsage
		}
		return 0
	}
	c, ok := commands()[e.args[0]]
	if !ok {
		fmt.Fprintf(e.errOut, "understudy: unknown command %q; see `understudy help`\n", e.args[0])
		return exitUsage
	}
	name := e.args[0]
	e.args = e.args[1:]
	err := c.run(e)
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
		return 0
	case errors.Is(err, errUsage):
		fmt.Fprintf(e.errOut, "understudy %s: %v; see `understudy %s --help`\n", name, err, name)
		return exitUsage
	}
	fmt.Fprintf(e.errOut, "understudy %s: %v\n", name, err)
	return exitError
}

func usage(w io.Writer) {
	fmt.Fprint(w,
		"understudy stands in front of a mail server and answers when it dies.\n\n"+
			"usage: understudy COMMAND [--help] …\n\n")
	var list []string
	for n := range commands() {
		list = append(list, n)
	}
	sort.Strings(list)
	for _, n := range list {
		fmt.Fprintf(w, "  %-12s %s\n", n, commands()[n].help)
	}
	fmt.Fprint(w, "\nexit codes: 0 done, 1 failed, 2 wrong usage\n")
}

// flags makes a command's flag set; --help prints what the command does.
func (e env) flags(name, args string) *flag.FlagSet {
	fs := flag.NewFlagSet(name, flag.ContinueOnError)
	fs.SetOutput(e.out)
	fs.Usage = func() {
		fmt.Fprintf(e.out, "usage: understudy %s [flags] %s\n\n%s\n\n", name, args, commands()[name].help)
		fs.PrintDefaults()
	}
	return fs
}

func (e env) parse(fs *flag.FlagSet, args int) error {
	if err := fs.Parse(e.args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return err
		}
		return fmt.Errorf("%w: %w", errUsage, err)
	}
	if args >= 0 && fs.NArg() > args {
		return fmt.Errorf("%w: too many arguments", errUsage)
	}
	return nil
}

// verbs parses flags before and after the words that say what to do.
func (e env) verbs(fs *flag.FlagSet) ([]string, error) {
	var words []string
	for {
		if err := e.parse(fs, -1); err != nil {
			return nil, err
		}
		if fs.NArg() == 0 {
			return words, nil
		}
		words = append(words, fs.Arg(0))
		e.args = fs.Args()[1:]
	}
}

func newLog(level string, w io.Writer) *slog.Logger {
	var l slog.Level
	_ = l.UnmarshalText([]byte(level)) // checked with the settings
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: l}))
}
