package sim

import (
	"os"
	"slices"
	"testing/synctest"
	"time"
)

// crash ends the Understudy as kill -9 does: at this moment, wherever it is, its
// connections are gone and nothing more of it reaches its disk. What it had written
// by then is what the next one finds: a copy of its directory, made while everything
// in the world stands still. The old one goes on in the old directory, without a
// connection, until it is over.
func (w *world) crash() {
	b := w.living()
	synctest.Wait()
	w.mu.Lock()
	w.boxes++
	w.box = nil
	w.mu.Unlock()
	if err := os.CopyFS(w.boxDir(), os.DirFS(b.dir)); err != nil {
		w.t.Error(err)
	}
	b.sever()
	b.cancel()
	w.ending.Go(func() {
		_ = b.g.Wait()
		_ = b.Close()
	})
}

// sever breaks all connections of the box, and refuses new ones.
func (b *appliance) sever() {
	b.mu.Lock()
	b.dead = true
	conns := slices.Clone(b.conns)
	b.mu.Unlock()
	for _, c := range conns {
		_ = c.Close()
	}
}

// crashBox: the box is killed, and started again.
func (w *world) crashBox() {
	w.died = true
	w.crash()
	time.Sleep(w.some(2 * time.Second))
	w.startBox()
}

// fall: box and production are killed together; either comes back first.
func (w *world) fall() {
	w.died = true
	w.crash()
	w.kill()
	again := []func(){w.start, w.startBox}
	first := w.below(2)
	time.Sleep(w.some(time.Second))
	again[first]()
	time.Sleep(w.some(4 * time.Second))
	again[1-first]()
}
