package main

import (
	"bytes"
	"context"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"understudy/console/api"
)

// commandLine runs a command line.
func commandLine(t *testing.T, args ...string) (code int, out, errOut string) {
	t.Helper()
	var o, e bytes.Buffer
	code = run(env{t.Context(), &o, &e, args})
	return code, o.String(), e.String()
}

func TestEveryCommandHelps(t *testing.T) {
	for name, c := range commands() {
		code, out, _ := commandLine(t, name, "--help")
		if code != 0 || !strings.Contains(out, c.help) || !strings.Contains(out, "usage: understudy "+name) {
			t.Errorf("%s --help: %d\n%s", name, code, out)
		}
	}
}

func TestUsage(t *testing.T) {
	for _, c := range []struct {
		args []string
		code int
		says string
	}{
		{nil, exitUsage, "usage: understudy COMMAND"},
		{[]string{"help"}, 0, "handback"},
		{[]string{"standby"}, exitUsage, `unknown command "standby"`},
		{[]string{"status", "--nonsense"}, exitUsage, "nonsense"},
		{[]string{"config"}, exitUsage, "say describe or check"},
		{[]string{"network", "burn"}, exitUsage, `"burn" is neither`},
		{[]string{"serve", "--config", "/nonexistent.toml"}, exitError, "no settings at /nonexistent.toml"},
	} {
		code, out, errOut := commandLine(t, c.args...)
		if code != c.code || !strings.Contains(out+errOut, c.says) {
			t.Errorf("%q: %d\n%s%s", c.args, code, out, errOut)
		}
	}
}

// What is generated is as it is committed.
func TestGenerated(t *testing.T) {
	made := map[string][]string{"understudy.toml": {"config", "describe"}}
	for table := range diagrams() {
		made[table+".mmd"] = []string{"diagram", table}
	}
	for file, args := range made {
		want, err := os.ReadFile(filepath.Join("..", "..", "docs", file))
		if _, out, _ := commandLine(t, args...); err != nil || out != string(want) {
			t.Errorf("docs/%s is not what %q prints: make gen (%v)", file, args, err)
		}
	}
}

// answers is a running appliance that takes orders.
type answers struct {
	api.Service
	got api.Order
}

func (a *answers) Status() (api.Status, error) {
	return api.Status{Answering: "standby", Phase: "serving", Asked: true, Problems: []string{"tried again: a fence"}},
		nil
}

func (a *answers) Handback(_ context.Context, o api.Order) (api.Answer, error) {
	a.got = o
	return api.Answer{Text: "production answers"}, nil
}

func TestCommandsOfARunningAppliance(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "control.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	a := &answers{}
	srv := &http.Server{Handler: api.Handler(a)}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(l) }()
	defer func() { _ = srv.Close(); <-done }()
	_, out, errOut := commandLine(t, "status", "--socket", socket)
	for _, want := range []string{"standby", "serving since", "waits for your word", "tried again: a fence"} {
		if !strings.Contains(out, want) {
			t.Errorf("status does not say %q:\n%s%s", want, out, errOut)
		}
	}
	if _, out, _ := commandLine(t, "status", "--json", "--socket", socket); !strings.Contains(out,
		`"answering": "standby"`) {
		t.Errorf("status --json:\n%s", out)
	}
	code, out, errOut := commandLine(t, "handback", "--socket", socket, "--wait=false", "--dry-run", "anna", "bert")
	if code != 0 || out != "production answers\n" || a.got.Wait || !a.got.DryRun ||
		strings.Join(a.got.Accounts, " ") != "anna bert" {
		t.Errorf("%d, %q, %q, %+v", code, out, errOut, a.got)
	}
}

// Sessions leave room for what else needs files.
func TestSessionsWithin(t *testing.T) {
	for files, want := range map[uint64]int{1024: 384, 4000: 1500, 21_000: 10_000} {
		if got := sessionsWithin(files); got != want {
			t.Errorf("%d files are for %d sessions, not %d", files, got, want)
		}
	}
}
