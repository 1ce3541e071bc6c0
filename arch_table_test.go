package understudy

// locks lists every mutex and every turn, a lock before those that may be taken
// while it is held. Within one package the test follows the calls; a turn that is
// held while another package is called comes before that one's locks.
var locks = []string{
	// The appliance.
	"cmd/box.losses.turn", "cmd/box.mirrorPort.mu",
	"failover/keeper.Keeper.mu", "failover/keeper.watchers.mu", "failover/keeper.gate.mu", "failover/keeper.inbox.mu",
	"proxy.Certificates.turn",
	// A session: the seat of its upstream, its state, what is written to its client.
	"proxy/imap.seat.turn", "proxy/imap.session.mu", "proxy/imap.downlink.turn",
	"proxy/smtp.swap.mu", "proxy/login.Banner.mu",
	"proxy/inline.Wire.mu", "proxy/inline.directory.mu", "proxy/inline.heard.mu",
	"snoop.told.mu",
	// Mirror and copy-back, then the ledgers and the store that they write to.
	"replica/mirror.jobRun.mu", "replica/mirror.locks.mu", "replica/mirror.pool.mu", "replica/mirror.unread.mu",
	"replica/copyback.Copier.turn", "replica/copyback.Copier.mu",
	"replica/journal.Journal.Turn", "replica/turn.counted.Turn", "replica/turn.Set.mu",
	"replica/delivery.Deliveries.mu", "replica/delivery.twins.mu", "replica/delivery.shelf.mu",
	"replica/delivery.holds.mu", "replica/route.Routes.mu",
	"replica/store.Store.alone", "replica/store.account.turn", "replica/store.Store.mu", "replica/store.account.mu",
	"replica/store.cache.mu",
	"replica/vault.Vault.mu",
	"replica/blob.Store.smu", "replica/blob.Store.wmu", "replica/blob.Store.mu",
	"replica/meta.reign.mu",
	// The lab.
	"lab/sim.world.mu", "lab/sim.appliance.mu", "lab/sim.server.mu", "lab/sim.lockedWriter.mu",
	"lab/load.Ledger.mu", "lab/check.Book.mu", "lab/hosts.Capture.mu",
}

// What is still to be mended, by package. These only shrink.
var (
	lockAllowances   = map[string]int{}
	columnAllowances = map[string]int{}
	typeAllowances   = []string{}
	besideAllowances = []string{}
	docAllowances    = []string{}
)
