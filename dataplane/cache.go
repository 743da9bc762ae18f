package dataplane

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

const (
	cacheFile = "haproxy.json"
	maxCache  = 1 << 20
)

// cache is what was last read from HAProxy, for when it is down.
type cache struct {
	Env   map[string]string `json:"env,omitempty"`
	Place Place             `json:"place,omitzero"`
	// Doomed are PEM files that no crt-list names any more, and from when they may be deleted.
	Doomed map[string]time.Time `json:"doomed,omitempty"`
	// Refused are the fingerprints of certificates that HAProxy does not want, by name.
	Refused map[string]string `json:"refused,omitempty"`
	// Wrecked is the process that must not be given certificates any more.
	Wrecked Process `json:"wrecked,omitzero"`
}

func (h *HAProxy) readCache() (cache, error) {
	var c cache
	b, _, err := readFile(filepath.Join(h.dir, cacheFile), maxCache)
	if err != nil {
		return c, err
	}
	if err := json.Unmarshal(b, &c); err != nil {
		return cache{}, fmt.Errorf("read %s: not valid; it is written anew when HAProxy answers", filepath.Join(h.dir, cacheFile))
	}
	return c, nil
}

func (h *HAProxy) writeCache(change func(*cache)) error {
	c, _ := h.readCache()
	change(&c)
	b, err := json.Marshal(c)
	if err != nil {
		return err
	}
	if len(b) > maxCache {
		return fmt.Errorf("keep settings: %d bytes, the limit is %d", len(b), maxCache)
	}
	path := filepath.Join(h.dir, cacheFile)
	if old, _, err := readFile(path, maxCache); err == nil && string(old) == string(b) {
		return nil
	}
	if err := os.MkdirAll(h.dir, 0o700); err != nil {
		return diskError(path, err)
	}
	return writeFile(path, b, 0o600)
}

// SaveEnv keeps the settings among env, those named SPOACME_*, for a start without HAProxy.
func (h *HAProxy) SaveEnv(env map[string]string) error {
	keep := map[string]string{}
	for k, v := range env {
		if strings.HasPrefix(k, "SPOACME_") {
			keep[k] = v
		}
	}
	h.cacheMu.Lock()
	defer h.cacheMu.Unlock()
	return h.writeCache(func(c *cache) { c.Env = keep })
}

// LoadEnv returns what SaveEnv kept; nil when there is nothing.
func (h *HAProxy) LoadEnv() (map[string]string, error) {
	h.cacheMu.Lock()
	defer h.cacheMu.Unlock()
	c, err := h.readCache()
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return c.Env, err
}

func (h *HAProxy) savePlace(p Place) error {
	h.cacheMu.Lock()
	defer h.cacheMu.Unlock()
	return h.writeCache(func(c *cache) { c.Place = p })
}

// lastPlace returns the place of last time when the settings do not say something else.
func (h *HAProxy) lastPlace(asked Place) (Place, bool) {
	h.cacheMu.Lock()
	c, err := h.readCache()
	h.cacheMu.Unlock()
	if asked.CrtDir != "" && asked.CrtList != "" {
		return asked, true
	}
	if err != nil || c.Place.CrtDir == "" ||
		asked.CrtDir != "" && asked.CrtDir != c.Place.CrtDir ||
		asked.CrtList != "" && asked.CrtList != cleanDir(c.Place.CrtList) {
		return Place{}, false
	}
	return c.Place, true
}

// loadVerdicts reads what HAProxy has refused, and which process it has cost, before this sidecar was started.
func (h *HAProxy) loadVerdicts() (refused map[string]string, wrecked Process) {
	h.cacheMu.Lock()
	defer h.cacheMu.Unlock()
	c, err := h.readCache()
	if err != nil || c.Refused == nil {
		c.Refused = map[string]string{}
	}
	return c.Refused, c.Wrecked
}

// doom has a PEM file deleted later: a HAProxy that is starting may have read the crt-list before its line went.
func (h *HAProxy) doom(file string) error {
	h.cacheMu.Lock()
	defer h.cacheMu.Unlock()
	return h.writeCache(func(c *cache) {
		if c.Doomed == nil {
			c.Doomed = map[string]time.Time{}
		}
		c.Doomed[file] = time.Now().Add(h.timing.grace)
	})
}

// bury deletes the doomed files whose time has come, except those that are in use again.
func (h *HAProxy) bury(p Place) {
	h.cacheMu.Lock()
	defer h.cacheMu.Unlock()
	c, err := h.readCache()
	if err != nil || len(c.Doomed) == 0 {
		return
	}
	keep := map[string]time.Time{}
	for file, at := range c.Doomed {
		switch {
		case filepath.Dir(file) != filepath.Clean(p.CrtDir) || h.list.load(p.CrtList) != nil || time.Now().Before(at):
			keep[file] = at
		case h.list.has(file): // it was deployed again
		default:
			if err := removePEM(file); err != nil {
				h.log.Warn("could not delete the file of a removed certificate", "err", err)
				keep[file] = at
			}
		}
	}
	if len(keep) == len(c.Doomed) {
		return
	}
	if err := h.writeCache(func(c *cache) { c.Doomed = keep }); err != nil {
		h.log.Warn("could not keep the list of files to delete", "err", err)
	}
}
