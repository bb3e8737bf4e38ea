package ingress

import (
	"net/http"
	"time"
)

// What only tests reach.
var (
	Confirmable      = confirmable
	NewConfirmClient = newConfirmClient
)

// ConfirmWith makes validation URLs be fetched by c.
func (in *Ingress) ConfirmWith(c *http.Client) { in.confirmClient = c }

// HurryConfirm replaces the pauses between tries until restore is called.
func HurryConfirm(waits ...time.Duration) (restore func()) {
	before := confirmWaits
	confirmWaits = waits
	return func() { confirmWaits = before }
}

// Risk is the watch over one source's answers.
type Risk struct{ risk }

func (k *Risk) Add(r *http.Request, code int, took time.Duration, now time.Time) {
	k.add(r, code, took, now)
}

func (k *Risk) Read(now time.Time) (share float64, deliveries int) { return k.read(now) }
