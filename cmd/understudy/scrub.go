package main

func scrub(e env) error {
	return order(e, "scrub", "", 0, false)
}
