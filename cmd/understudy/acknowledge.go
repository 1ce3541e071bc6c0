package main

func acknowledge(e env) error {
	return order(e, "acknowledge", "", 0, false)
}
