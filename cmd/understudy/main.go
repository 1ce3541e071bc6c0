// Command understudy is the one binary: the appliance itself (serve), its
// commands, and a demonstration.
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

	"understudy/console/config"
	"understudy/failover"
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
		"diagram":     {"print the failover table as a Mermaid diagram", diagram},
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
	fmt.Fprint(w, "understudy stands in front of a mail server and answers when it dies.\n\nusage: understudy COMMAND [--help] …\n\n")
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

const defaultConfig = "/etc/understudy.toml"

func configFlag(fs *flag.FlagSet) *string {
	return fs.String("config", defaultConfig, "settings file")
}

func readConfig(path string) (config.Config, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return config.Config{}, fmt.Errorf("no settings at %s: write one (`understudy config describe` prints the reference), or name another with --config", path)
	}
	if err != nil {
		return config.Config{}, fmt.Errorf("settings: %w", err)
	}
	c, err := config.Parse(b)
	if err != nil {
		return c, fmt.Errorf("settings %s: %w", path, err)
	}
	return c, nil
}

func newLog(level string, w io.Writer) *slog.Logger {
	var l slog.Level
	_ = l.UnmarshalText([]byte(level)) // checked with the settings
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: l}))
}

func serve(e env) error {
	fs := e.flags("serve", "")
	path := configFlag(fs)
	if err := e.parse(fs, 0); err != nil {
		return err
	}
	cfg, err := readConfig(*path)
	if err != nil {
		return err
	}
	if err := raiseFiles(); err != nil {
		return err
	}
	log := newLog(cfg.LogLevel, e.errOut)
	if have, need, err := fileLimit(cfg.Listen.MaxSessions); err == nil && have < need {
		cfg.Listen.MaxSessions = sessionsWithin(have)
		log.Warn("fewer open files are allowed than listen.max_sessions may need, so fewer sessions are taken; raise LimitNOFILE of the unit",
			"allowed", have, "needed", need, "sessions", cfg.Listen.MaxSessions)
	}
	a, err := newApp(cfg, log, nil)
	if err != nil {
		return err
	}
	err = a.run(e.ctx, func(addrs map[string]string) {
		for name, addr := range addrs {
			log.Info("listening", "for", name, "addr", addr)
		}
		log.Info("ready", "phase", a.keeper.State().Phase)
	})
	return errors.Join(err, a.Close())
}

// fileLimit is how many files may be open, and how many all sessions may need.
func fileLimit(sessions int) (have, need uint64, err error) {
	var r syscall.Rlimit
	err = syscall.Getrlimit(syscall.RLIMIT_NOFILE, &r)
	return r.Max, uint64(2*sessions) + ownFiles, err
}

// ownFiles is what is kept for everything but sessions: for the probes, too.
const ownFiles = 1000

// sessionsWithin is how many sessions can be had with a number of files.
func sessionsWithin(files uint64) int { return int(files-min(ownFiles, files/4)) / 2 }

// raiseFiles lifts the limit of open files to what is allowed: every session
// needs two.
func raiseFiles() error {
	var r syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &r); err != nil {
		return fmt.Errorf("limit of open files: %w", err)
	}
	r.Cur = r.Max
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &r); err != nil {
		return fmt.Errorf("limit of open files: %w", err)
	}
	return nil
}

func configCmd(e env) error {
	fs := e.flags("config", "describe|check")
	path := configFlag(fs)
	if len(e.args) == 0 {
		return fmt.Errorf("%w: say describe or check", errUsage)
	}
	what := e.args[0]
	if what == "-h" || what == "--help" {
		fs.Usage()
		return nil
	}
	e.args = e.args[1:]
	if err := e.parse(fs, 0); err != nil {
		return err
	}
	switch what {
	case "describe":
		fmt.Fprint(e.out, config.Describe())
		return nil
	case "check":
		if _, err := readConfig(*path); err != nil {
			return err
		}
		fmt.Fprintf(e.out, "%s is fine\n", *path)
		return nil
	}
	return fmt.Errorf("%w: %q is neither describe nor check", errUsage, what)
}

func diagram(e env) error {
	fs := e.flags("diagram", "")
	if err := e.parse(fs, 0); err != nil {
		return err
	}
	fmt.Fprint(e.out, failover.Diagram())
	return nil
}
