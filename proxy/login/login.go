// Package login reads a client's proof of who it is, strictly, and keeps how
// production greets.
//
// Implementation notes. A login is read here whole and written again in one
// canonical form by package upstream, so that proxy and server can never disagree
// about who logged in. Errors that wrap imapwire.ErrSyntax are the client's: it is
// told so and may go on. Banner has a lock of its own, under which nothing waits.
package login
