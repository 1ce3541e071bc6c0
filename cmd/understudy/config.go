package main

import (
	"errors"
	"flag"
	"fmt"
	"os"

	"understudy/console/config"
)

const defaultConfig = "/etc/understudy.toml"

func configFlag(fs *flag.FlagSet) *string {
	return fs.String("config", defaultConfig, "settings file")
}

func readConfig(path string) (config.Config, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return config.Config{}, fmt.Errorf("no settings at %s: write one (`understudy config describe` "+
			"prints the reference), or name another with --config", path)
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
