package studio

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// Limits of what a client may ask for.
const (
	maxBody     = 64 << 10 // bytes of a request
	maxHeader   = 16 << 10
	maxInFlight = 128 // requests at a time, streams of events aside
	maxStreams  = 32  // streams of events at a time
	maxConns    = 512 // connections; more are closed at once
)

// policy is what the page may do: load its own files and nothing else, and stand in no frame.
const policy = "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"

// guard stands before every handler. It refuses, in this order: hosts that are not ours (DNS rebinding), requests that
// another site's page makes, clients without the token, and more requests at a time than are served.
type guard struct {
	token    string   // "" = none is asked for
	loopback bool     // only loopback names are ours
	hosts    []string // further names, where not
	secure   bool     // TLS
	slots    chan struct{}
	next     http.Handler
}

func (g *guard) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Security-Policy", policy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cache-Control", "no-store")
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(30 * time.Second)) // not every ResponseWriter of a test has one

	if !g.ours(r.Host) {
		deny(w, http.StatusMisdirectedRequest, "this address is not one of the studio's: open it by the one that it printed", "name more with --host")
		return
	}
	if !sameSite(r) {
		deny(w, http.StatusForbidden, "a request made by another site's page", "")
		return
	}
	if g.token != "" {
		query := r.URL.Path == "/" && r.Method == http.MethodGet && equal(r.URL.Query().Get("token"), g.token)
		if query {
			http.SetCookie(w, &http.Cookie{Name: g.cookie(r), Value: g.token, Path: "/", HttpOnly: true, SameSite: http.SameSiteStrictMode, Secure: g.secure})
		}
		if !query && !g.known(r) {
			h.Set("WWW-Authenticate", `Bearer realm="drift studio"`)
			deny(w, http.StatusUnauthorized, "the token is missing or wrong", "open the address that drift studio printed, with its ?token=")
			return
		}
	}
	if r.URL.Path != eventsPath {
		select {
		case g.slots <- struct{}{}:
			defer func() { <-g.slots }()
		default:
			h.Set("Retry-After", "1")
			deny(w, http.StatusServiceUnavailable, "too many requests at a time", "try again")
			return
		}
	}
	r.Body = http.MaxBytesReader(w, r.Body, maxBody)
	g.next.ServeHTTP(w, r)
}

// ours tells whether the Host of a request is a name of this server. A page that has its own name point here (DNS
// rebinding) still sends that name.
func (g *guard) ours(host string) bool {
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	} else {
		name = strings.TrimSuffix(strings.TrimPrefix(name, "["), "]")
	}
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	ip := net.ParseIP(name)
	switch {
	case name == "localhost":
		return true
	case g.loopback:
		return ip != nil && ip.IsLoopback()
	}
	return ip != nil || slices.Contains(g.hosts, name)
}

// sameSite refuses what a page of another site asks for: by Sec-Fetch-Site, and by Origin where something is changed. A
// link to the page itself may stand anywhere. Clients that are no browsers send neither.
func sameSite(r *http.Request) bool {
	switch r.Header.Get("Sec-Fetch-Site") {
	case "", "same-origin", "none":
	default:
		if !(r.Method == http.MethodGet && r.URL.Path == "/" && r.Header.Get("Sec-Fetch-Mode") == "navigate") {
			return false
		}
	}
	if r.Method == http.MethodGet || r.Method == http.MethodHead {
		return true
	}
	origins := r.Header.Values("Origin")
	if len(origins) == 0 {
		return true
	}
	u, err := url.Parse(origins[0])
	return err == nil && len(origins) == 1 && u.Host != "" && strings.EqualFold(u.Host, r.Host)
}

// cookie is the cookie's name: browsers do not keep the cookies of two ports apart.
func (g *guard) cookie(r *http.Request) string {
	_, port, _ := net.SplitHostPort(r.Host)
	return "drift-studio-" + port
}

// known tells whether a request carries the token.
func (g *guard) known(r *http.Request) bool {
	if c, err := r.Cookie(g.cookie(r)); err == nil && equal(c.Value, g.token) {
		return true
	}
	bearer, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	return ok && equal(bearer, g.token)
}

// equal compares in a time that tells nothing, of the length neither.
func equal(a, b string) bool {
	x, y := sha256.Sum256([]byte(a)), sha256.Sum256([]byte(b))
	return subtle.ConstantTimeCompare(x[:], y[:]) == 1
}

// deny answers with an error.
func deny(w http.ResponseWriter, code int, text, hint string) {
	answer(w, code, map[string]string{"error": text, "hint": hint})
}

// answer writes JSON.
func answer(w http.ResponseWriter, code int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		code, b = http.StatusInternalServerError, []byte(fmt.Sprintf(`{"error":%q}`, err.Error()))
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(code)
	_, _ = w.Write(b) // a client that has gone
}
