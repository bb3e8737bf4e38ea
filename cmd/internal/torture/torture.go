// Package torture treats the real program as the world will: it cuts its power,
// kills it, fills, freezes, spoils and takes away its disk, stops it under load
// and kills the broker it talks to, and wants every event that was answered 200
// at every subscriber afterwards, once in the store and once in the books.
//
// The tests need root, Linux, loop devices and ext4, and stand behind the build
// tag torture; "make torture" runs them. docs/crash-tests.md says what each does
// and what it cannot show.
package torture
