package sim

import (
	"time"

	"understudy/failover"
)

// twice: a takeover as soon as all is handed back from another one.
func (w *world) twice() {
	for range 2 {
		w.wait(failover.Protecting)
		w.tell(failover.Happened{Event: failover.Takeover})
		w.liven(4 * time.Second)
		w.wait(failover.Serving, failover.Returning)
	}
}
