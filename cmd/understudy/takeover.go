package main

func takeover(e env) error {
	return order(e, "takeover", "", 0, true)
}
