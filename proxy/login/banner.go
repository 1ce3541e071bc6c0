package login

import (
	"slices"
	"strings"
	"sync"

	"understudy/proxy/seam"
)

// unknown is how clients are greeted while production's way is not known.
const unknown = "ready."

// Banner is what production says of itself, learned from its sessions.
type Banner struct {
	changed chan struct{} // rung when something new was learned

	mu   sync.RWMutex
	text string
	auth seam.Caps // AUTH= of production
	caps seam.Caps // shown after login: production's, cut down
}

// NewBanner shows these capabilities after login until production's are known.
func NewBanner(caps seam.Caps) *Banner {
	return &Banner{changed: make(chan struct{}, 1), text: unknown, auth: seam.Caps{"AUTH=PLAIN", "AUTH=LOGIN"},
		caps: caps}
}

// Learn keeps production's greeting and mechanisms for later clients: text without
// what a line cannot carry, and of caps those mechanisms that can be read here.
func (b *Banner) Learn(text string, caps seam.Caps) {
	var auth seam.Caps
	for _, c := range caps {
		switch u := strings.ToUpper(c); u {
		case "AUTH=PLAIN", "AUTH=LOGIN", "AUTH=XOAUTH2", "AUTH=OAUTHBEARER":
			auth = append(auth, u)
		}
	}
	text = strings.Map(func(r rune) rune {
		if r < 0x20 || r >= 0x7f {
			return -1
		}
		return r
	}, text)
	b.mu.Lock()
	defer b.mu.Unlock()
	if text != "" && text != b.text {
		b.text = text
		b.ring()
	}
	if len(auth) > 0 && !slices.Equal(auth, b.auth) {
		b.auth = auth
		b.ring()
	}
}

// Changed is rung when something new was learned. It is for one listener.
func (b *Banner) Changed() <-chan struct{} { return b.changed }

func (b *Banner) ring() {
	select {
	case b.changed <- struct{}{}:
	default:
	}
}

// LearnCaps keeps what is shown after login.
func (b *Banner) LearnCaps(caps seam.Caps) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !slices.Equal(caps, b.caps) {
		b.caps = caps
		b.ring()
	}
}

// Known reports whether production's greeting was learned.
func (b *Banner) Known() bool {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return b.text != unknown
}

// Show returns what was learned.
func (b *Banner) Show() seam.Greeting {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return seam.Greeting{Text: b.text, Auth: slices.Clone(b.auth), Caps: slices.Clone(b.caps)}
}
