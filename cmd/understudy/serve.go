package main

import (
	"errors"
	"fmt"
	"syscall"

	"understudy/cmd/box"
)

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
		log.Warn("fewer open files are allowed than listen.max_sessions may need, so fewer sessions are taken; "+
			"raise LimitNOFILE of the unit",
			"allowed", have, "needed", need, "sessions", cfg.Listen.MaxSessions)
	}
	var b *box.Box
	b, err = box.New(box.Options{Config: cfg, Log: log, Ready: func(addrs map[string]string) {
		for name, addr := range addrs {
			log.Info("listening", "for", name, "addr", addr)
		}
		log.Info("ready", "phase", b.State().Phase)
	}})
	if err != nil {
		return err
	}
	return errors.Join(b.Run(e.ctx), b.Close())
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
