package sim

import (
	"time"

	"understudy/failover"
)

// partial: one account is handed back first.
func (w *world) partial() {
	w.wait(failover.Protecting)
	w.tell(failover.Happened{Event: failover.Takeover})
	w.wait(failover.Serving, failover.Returning)
	w.tell(failover.Happened{Event: failover.Handback, Accounts: w.users[:1]})
	w.liven(4 * time.Second)
	time.Sleep(w.some(4 * time.Second))
}
