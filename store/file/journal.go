package file

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spoacme/spoacme/store"
)

// journal is the file that makes commits atomic and durable: a line per batch of commits, appended and synced before
// anything else happens. It is emptied when the records themselves are on disk.
//
// A line is the SHA-256 of the rest, a space, and the batch as JSON. One that is cut off or damaged was never
// acknowledged.
type journal struct {
	path  string
	fault faultFunc
	f     *os.File
	info  os.FileInfo
	size  int64
	seq   uint64
	// broken: the last batch may or may not be in the file. Nothing is appended until it was replaced.
	broken bool
}

// batch is one line.
type batch struct {
	Seq    uint64        `json:"seq"` // 1, 2, 3 …
	Writes []store.Write `json:"writes"`
}

func encodeBatch(seq uint64, writes []store.Write) ([]byte, error) {
	b, err := json.Marshal(batch{seq, writes})
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(b)
	line := make([]byte, 0, len(b)+66)
	line = hex.AppendEncode(line, sum[:])
	line = append(line, ' ')
	line = append(line, b...)
	return append(line, '\n'), nil
}

// readBatches returns the batches of a journal and how many bytes at its end are none.
func readBatches(data []byte) (batches []batch, rest int) {
	for len(data) > 0 {
		line, after, whole := bytes.Cut(data, []byte("\n"))
		sum, body, _ := bytes.Cut(line, []byte(" "))
		want := sha256.Sum256(body)
		var b batch
		if !whole || string(sum) != hex.EncodeToString(want[:]) || json.Unmarshal(body, &b) != nil ||
			b.Seq != uint64(len(batches)+1) {
			break
		}
		batches = append(batches, b)
		data = after
	}
	return batches, len(data)
}

// open opens the journal and returns what an earlier process left in it: the batches, also when the file can't be
// opened for writing, and how many bytes at its end are none.
func (j *journal) open() (batches []batch, rest int, err error) {
	data, err := os.ReadFile(j.path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, 0, err
	}
	batches, rest = readBatches(data)
	f, err := os.OpenFile(j.path, os.O_RDWR|os.O_CREATE, 0o600)
	if err == nil {
		err = j.use(f)
	}
	if err != nil {
		return batches, rest, err
	}
	j.size, j.seq = int64(len(data)-rest), uint64(len(batches))
	if rest > 0 && j.truncate(j.size) != nil {
		j.broken = true
	}
	return batches, rest, nil
}

// writes reads what the journal has of each record: data, nil for one that was deleted.
func (j *journal) writes() (map[store.Key][]byte, error) {
	data := make([]byte, j.size)
	if _, err := j.f.ReadAt(data, 0); err != nil {
		return nil, fmt.Errorf("read journal: %w", err)
	}
	writes := map[store.Key][]byte{}
	batches, _ := readBatches(data)
	for _, b := range batches {
		for _, w := range b.Writes {
			writes[w.Key] = w.Data
		}
	}
	return writes, nil
}

func (j *journal) use(f *os.File) error {
	info, err := f.Stat()
	if err == nil && info.Mode().Perm() != 0o600 {
		err = f.Chmod(0o600)
	}
	if err != nil {
		_ = f.Close()
		return err
	}
	j.close()
	j.f, j.info, j.broken = f, info, false
	return nil
}

// attached reports whether the journal is still the file that its path names: a restore may have replaced it.
func (j *journal) attached() bool {
	info, err := os.Stat(j.path)
	return err == nil && j.f != nil && os.SameFile(info, j.info)
}

// append makes writes durable. Its error wraps ErrRefused when it is certain that they are not in the
// journal, else ErrUnknown.
func (j *journal) append(writes []store.Write) error {
	line, err := encodeBatch(j.seq+1, writes)
	if err != nil {
		return store.Refusedf("write journal: %w", err)
	}
	err = do(j.fault, "journal write", j.path, func() error { _, err := j.f.WriteAt(line, j.size); return err })
	if err == nil {
		err = do(j.fault, "journal sync", j.path, j.f.Sync)
	}
	if err == nil {
		j.size += int64(len(line))
		j.seq++
		return nil
	}
	err = fmt.Errorf("%w: %w", store.ErrStorage, err)
	if now, statErr := j.f.Stat(); statErr == nil && now.Size() == j.size {
		return store.Refusedf("write journal: %w", err)
	}
	if back := j.truncate(j.size); back != nil {
		j.broken = true
		return fmt.Errorf("%w: write journal: %w", store.ErrUnknown, err)
	}
	return store.Refusedf("write journal: %w", err)
}

// reset empties the journal.
func (j *journal) reset() error {
	if j.size == 0 && !j.broken {
		return nil
	}
	if j.broken {
		return j.replace()
	}
	if err := j.truncate(0); err != nil {
		j.broken = true
		return err
	}
	j.size, j.seq = 0, 0
	return nil
}

// replace puts a new empty file in the place of one whose content is uncertain.
func (j *journal) replace() error {
	temp := j.path + tempSuffix
	_ = os.Remove(temp)
	f, err := os.OpenFile(temp, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	err = do(j.fault, "journal replace", j.path, func() error { return os.Rename(temp, j.path) })
	if err != nil {
		_ = f.Close()
		return err
	}
	err = j.use(f)
	if err == nil {
		err = syncPath(filepath.Dir(j.path))
	}
	j.broken = err != nil
	if err == nil {
		j.size, j.seq = 0, 0
	}
	return err
}

func (j *journal) truncate(size int64) error {
	return do(j.fault, "journal truncate", j.path, func() error {
		if err := j.f.Truncate(size); err != nil {
			return err
		}
		return j.f.Sync()
	})
}

func (j *journal) close() {
	if j.f != nil {
		_ = j.f.Close()
		j.f = nil
	}
}
