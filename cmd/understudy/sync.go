package main

func syncNow(e env) error {
	return order(e, "sync", "[account …]", -1, false)
}
