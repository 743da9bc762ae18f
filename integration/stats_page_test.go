package integration

import (
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"github.com/spoacme/spoacme/integration/fixture"
)

// openPage opens HAProxy's statistics page in a browser without a window.
func openPage(t *testing.T, h *fixture.HAProxy) context.Context {
	t.Helper()
	opts := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.NoSandbox)
	ctx, cancel := chromedp.NewExecAllocator(t.Context(), opts...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	if _, err := chromedp.Run(ctx, chromedp.Navigate("http://"+h.Stats.Addr()+"/")); err != nil {
		t.Fatalf("open the statistics page: %v: run `make tools-chromium`", err)
	}
	ctx, cancel = context.WithTimeout(ctx, 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// pageRow is a server as the statistics page shows it.
type pageRow struct {
	Class  string // its colour
	Status string // such as "3s UP"
	Weight string // such as "61/61"
	Text   string // of the status, with what the mouse brings up
}

// readRow finds the row of a certificate on the page that is open.
const readRow = `(() => {
	const anchor = document.querySelector('a[name="certificates/%s"]');
	if (!anchor) return {};
	const row = anchor.closest('tr');
	const heads = [...row.closest('table').querySelectorAll('tr.titre')[1].cells].map(c => c.textContent.trim());
	const cell = head => row.cells[1 + heads.indexOf(head)];
	const status = cell('Status');
	const tips = status.querySelector('div.tips');
	const text = status.textContent.trim();
	return {
		Class: row.className,
		Status: tips ? text.replace(tips.textContent, '').trim() : text,
		Weight: cell('Wght').textContent.trim(),
		Text: text + ' ' + cell('LastChk').textContent.trim(),
	};
})()`

// pageShows loads the page until the row of a certificate is as it should be.
func pageShows(t *testing.T, page context.Context, certificate, what string, right func(pageRow) bool) pageRow {
	t.Helper()
	var row pageRow
	err := fixture.Await(page, settleTimeout, func() error {
		if _, err := chromedp.Run(page, chromedp.Reload()); err != nil {
			return err
		}
		var err error
		if row, err = chromedp.Run(page, chromedp.Evaluate[pageRow](fmt.Sprintf(readRow, certificate))); err != nil {
			return err
		}
		if !right(row) {
			return fmt.Errorf("the row of %s is %+v, not %s", certificate, row, what)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return row
}

// statRow returns the row of a server in `show stat`, by column.
func statRow(h *fixture.HAProxy, backend, server string) (map[string]string, error) {
	stat, err := h.Command("show stat")
	if err != nil {
		return nil, err
	}
	lines := csv.NewReader(strings.NewReader(strings.TrimPrefix(stat, "# ")))
	lines.FieldsPerRecord = -1
	records, err := lines.ReadAll()
	if err != nil {
		return nil, fmt.Errorf("read show stat: %w", err)
	}
	for _, columns := range records {
		if columns[0] != backend || columns[1] != server {
			continue
		}
		row := make(map[string]string)
		for i, head := range records[0] {
			row[head] = columns[i]
		}
		return row, nil
	}
	return nil, errNoRow
}

var errNoRow = errors.New("no such server in show stat")

// awaitStat waits until a server's row is as it should be.
func awaitStat(t *testing.T, h *fixture.HAProxy, backend, server string, right func(row map[string]string) error) {
	t.Helper()
	err := fixture.Await(t.Context(), settleTimeout, func() error {
		row, err := statRow(h, backend, server)
		if err != nil {
			return err
		}
		return right(row)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// percentLeft is how much of a certificate's lifetime is left.
func percentLeft(from, to time.Time) int {
	return int(100 * time.Until(to).Seconds() / to.Sub(from).Seconds())
}
