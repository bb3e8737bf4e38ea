// Package repotest holds the house rules of this repository as tests: which
// package may import which, that everything exported is documented, what must
// not stand in code or in any file. Every failure names the rule's reason.
//
// The rules look at what git would commit: tracked files and new ones that are
// not ignored. There is no code here beside the tests.
package repotest
