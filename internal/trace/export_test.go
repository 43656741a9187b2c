package trace

import (
	"encoding/binary"
	"hash/crc32"
)

// fixPreamble makes the checksum of a file's first bytes right again.
func fixPreamble(b []byte) {
	binary.LittleEndian.PutUint32(b[12:], crc32.Checksum(b[:12], castagnoli))
}
