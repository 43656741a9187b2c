package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
)

// settingFile holds the setting that the bench at work has changed. Only root may write to its directory, since the next bench writes what it says.
const settingFile = "/run/qos-agent-bench-setting.json"

// setting is a file of the machine's that a bench changes, and what was in it before.
type setting struct {
	File string `json:"file"`
	Was  string `json:"was"`
}

// Change writes to a file that is a setting of the whole machine, and says on to how to put back what was there. undo does that; where a bench is
// killed before, the next one does. One setting at a time.
func (l *Lab) Change(file, text string, to io.Writer) (undo func() error, err error) {
	return change(settingFile, file, text, to)
}

func change(record, file, text string, to io.Writer) (undo func() error, err error) {
	before, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	s := setting{file, strings.TrimSpace(string(before))}
	if err := s.keep(record); err != nil {
		return nil, fmt.Errorf("keep what is to be put back: %w", err)
	}
	undo = func() error { _, err := putBack(record); return err }
	fmt.Fprintf(to, "%s becomes %s for a while. If this is killed, the next bench puts it back, or: echo '%s' > %s\n", file, text, s.Was, file)
	if err := os.WriteFile(file, []byte(text), 0); err != nil {
		return nil, errors.Join(err, undo())
	}
	return undo, nil
}

// keep writes the record, whole or not at all. It fails if there is one.
func (s setting) keep(record string) error {
	if _, err := os.Lstat(record); !errors.Is(err, fs.ErrNotExist) {
		return errors.Join(err, fmt.Errorf("%s is there already", record))
	}
	text, err := json.Marshal(s)
	if err != nil {
		return err
	}
	if err := os.WriteFile(record+".tmp", append(text, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(record+".tmp", record)
}

// putBack puts back what the record has, if there is one, and removes it.
func putBack(record string) (s setting, err error) {
	text, err := os.ReadFile(record)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err == nil {
		err = json.Unmarshal(text, &s)
	}
	if err == nil {
		err = os.WriteFile(s.File, []byte(s.Was), 0)
	}
	if err != nil {
		return s, fmt.Errorf("put back the setting that %s keeps (remove it to leave things as they are): %w", record, err)
	}
	return s, os.Remove(record)
}
