package main

func handback(e env) error {
	return order(e, "handback", "[account …]", -1, true)
}
