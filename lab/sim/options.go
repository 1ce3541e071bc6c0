package sim

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// options say what is simulated.
type options struct {
	seeds, first uint64
	brief        bool    // one fault under the hands of two clients: a sixth of the time
	faults       []fault // to choose from
	logs         string  // where log and history of a seed that failed are kept; "": nowhere
}

// fromEnvironment reads UNDERSTUDY_SEEDS (how many), UNDERSTUDY_SEED (which one
// first), UNDERSTUDY_BRIEF, UNDERSTUDY_FAULT (names, with commas; all if it is empty)
// and UNDERSTUDY_LOGS.
func fromEnvironment() (options, error) {
	o := options{seeds: 5, first: uint64(time.Now().UnixNano()) % 1e9}
	o.brief, o.logs = os.Getenv("UNDERSTUDY_BRIEF") != "", os.Getenv("UNDERSTUDY_LOGS")
	for name, to := range map[string]*uint64{"UNDERSTUDY_SEEDS": &o.seeds, "UNDERSTUDY_SEED": &o.first} {
		text := os.Getenv(name)
		if text == "" {
			continue
		}
		n, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			return o, fmt.Errorf("%s: %q is no number", name, text)
		}
		*to = n
	}
	var err error
	o.faults, err = chosen(os.Getenv("UNDERSTUDY_FAULT"))
	return o, err
}

// chosen are the faults of those names.
func chosen(names string) ([]fault, error) {
	all := faults()
	if names == "" {
		return all, nil
	}
	var out []fault
	for name := range strings.SplitSeq(names, ",") {
		i := slices.IndexFunc(all, func(f fault) bool { return f.name == name })
		if i < 0 {
			names := strings.Join(faultNames(all), ", ")
			return nil, fmt.Errorf("UNDERSTUDY_FAULT: there is no fault %q; there are %s", name, names)
		}
		out = append(out, all[i])
	}
	return out, nil
}
