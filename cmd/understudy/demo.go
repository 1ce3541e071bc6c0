package main

func demo(e env) error       { return nil }
func demoServer(e env) error { return nil }
