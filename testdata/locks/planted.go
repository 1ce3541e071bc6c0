// Package planted does what is forbidden under a lock, in lines that say so, and
// what is allowed, in lines that do not.
package planted

import (
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"time"
)

type speaker interface{ Speak() }

// Thing has locks.
type Thing struct {
	a    sync.Mutex
	b    sync.RWMutex
	turn chan struct{}
	conn net.Conn
	tell func()
	who  speaker
	c    chan int
	n    []int
}

func (t *Thing) plain() {
	t.a.Lock()
	defer t.a.Unlock()
	_ = os.Remove("x")       // wrong: the disk
	t.tell()                 // wrong: whatever it is
	t.who.Speak()            // wrong: whoever it is
	t.c <- 1                 // wrong: waits
	<-t.c                    // wrong: waits
	time.Sleep(1)            // wrong: waits
	_, _ = t.conn.Write(nil) // wrong: waits
	fmt.Println("x")         // wrong: writes
	_ = fmt.Sprint(time.Now())
	slices.SortFunc(t.n, func(x, y int) int { return x - y })
}

func (t *Thing) between() error {
	t.a.Lock()
	if len(t.n) == 0 {
		t.a.Unlock()
		return os.Remove("x")
	}
	t.n = nil
	t.a.Unlock()
	return os.Remove("x")
}

func (t *Thing) oneWay(b bool) {
	t.a.Lock()
	if b {
		t.a.Unlock()
	}
	_ = os.Remove("x") // wrong: held if not b
	if !b {
		t.a.Unlock()
	}
}

func (t *Thing) loop() {
	for range 3 {
		t.b.RLock()
		if len(t.n) > 1 {
			break
		}
		t.b.RUnlock()
	}
	t.tell() // wrong: held after the break
}

// helped is called with a held.
func (t *Thing) helped() {
	t.deeper()
}

func (t *Thing) deeper() {
	t.tell() // wrong: from through
	t.a.Unlock()
	t.tell()
	t.a.Lock()
}

func (t *Thing) through() {
	t.a.Lock()
	t.helped()
	t.a.Unlock()
	t.tell()
}

func (t *Thing) each(f func(int)) {
	t.a.Lock()
	defer t.a.Unlock()
	for _, n := range t.n {
		f(n)
	}
}

func (t *Thing) callers() {
	sum := 0
	t.each(func(n int) { sum += n })
	t.each(func(int) { t.tell() }) // wrong: called under the lock
}

func (t *Thing) beside() {
	t.a.Lock()
	defer t.a.Unlock()
	go func() { t.tell() }()
	f := func() { t.tell() } // wrong: where it is called
	f()
	select {
	case t.c <- 1:
	default:
	}
	select {
	case <-t.c: // wrong: waits
	case t.c <- 1: // wrong: waits
	}
	t.tell() //lock: it is known
}

func (t *Thing) ordered() {
	t.turn <- struct{}{}
	defer func() { <-t.turn }()
	t.tell()
	t.a.Lock()
	t.b.Lock()
	t.b.Unlock()
	t.a.Unlock()
}

func (t *Thing) reversed() {
	t.b.Lock()
	defer t.b.Unlock()
	t.takesA()
}

func (t *Thing) takesA() {
	t.a.Lock()
	t.a.Unlock()
}

func (t *Thing) taken() (unlock func()) {
	t.a.Lock()
	return t.a.Unlock
}

func (t *Thing) takes() {
	for range 3 {
		unlock := t.taken()
		t.tell() // wrong: held by taken
		unlock()
		t.tell()
	}
}
