package inline

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
)

// memory is what outlives the process, and a fall of the machine.
type memory struct {
	Fenced bool   `json:"fenced"`
	Epoch  uint64 `json:"epoch"` // of the failover state that it belongs to
	MAC    string `json:"mac,omitempty"`
	NewMAC string `json:"new_mac,omitempty"`
}

// Remember reads a site's memory, if there is one.
func Remember(path string, s *Site) (memory, error) {
	var m memory
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return m, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &m)
	}
	if err != nil {
		return m,
			fmt.Errorf(
				"%s, which says whether production is fenced, cannot be read: %w. If `understudy status` last said "+
					"that production answered, remove the file", path, err)
	}
	for text, to := range map[string]*net.HardwareAddr{m.MAC: &s.MAC, m.NewMAC: &s.NewMAC} {
		if text == "" || to == &s.MAC && s.MAC != nil {
			continue // settings win
		}
		if *to, err = net.ParseMAC(text); err != nil {
			return m, fmt.Errorf("%s: %w", path, err)
		}
	}
	s.Fenced = m.Fenced
	return m, nil
}

// save writes what is so now. mu is held.
func (w *Wire) save(epoch uint64) error {
	m := memory{Fenced: w.site.Fenced, Epoch: epoch}
	if w.site.MAC != nil {
		m.MAC = w.site.MAC.String()
	}
	if w.site.NewMAC != nil {
		m.NewMAC = w.site.NewMAC.String()
	}
	if m == w.memory {
		return nil
	}
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if err := replace(w.opt.Memory, b); err != nil {
		return fmt.Errorf("note the state of the fence: %w", err)
	}
	w.memory = m
	return nil
}

// replace writes a file so that it is there as a whole, or as it was.
func replace(path string, b []byte) error {
	f, err := os.OpenFile(path+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(path+".new", path); err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
