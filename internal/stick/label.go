// SPDX-License-Identifier: Apache-2.0

package stick

import (
	"bytes"
	"encoding/binary"
	"io"
	"strings"
	"unicode/utf16"
)

// labelOf returns the kind of a file system, by the kernel's name, and its label. Both are empty for all but ext2 to
// ext4, FAT and exFAT. What it reads is not trusted.
func labelOf(disk io.ReaderAt) (kind, label string) {
	head := make([]byte, 2048)
	if _, err := disk.ReadAt(head, 0); err != nil {
		return "", ""
	}
	le := binary.LittleEndian
	switch {
	case le.Uint16(head[1080:]) == 0xEF53:
		return "ext4", text(head[1144:1160])
	case string(head[3:11]) == "EXFAT   ":
		sector, cluster := uint(head[108]), uint(head[109])
		if sector > 12 || cluster > 25 || le.Uint32(head[96:]) < 2 {
			return "", ""
		}
		root := (int64(le.Uint32(head[88:])) + int64(le.Uint32(head[96:])-2)<<cluster) << sector
		return "exfat", exfatLabel(entries(disk, root))
	case le.Uint16(head[510:]) != 0xAA55:
		return "", ""
	case string(head[82:87]) == "FAT32":
		fats := int64(le.Uint16(head[14:])) + int64(head[16])*int64(le.Uint32(head[36:]))
		root := (fats + (int64(le.Uint32(head[44:]))-2)*int64(head[13])) * int64(le.Uint16(head[11:]))
		return "vfat", fatLabel(entries(disk, root), head[71:82])
	case string(head[54:57]) == "FAT":
		root := (int64(le.Uint16(head[14:])) + int64(head[16])*int64(le.Uint16(head[22:]))) * int64(le.Uint16(head[11:]))
		return "vfat", fatLabel(entries(disk, root), head[43:54])
	}
	return "", ""
}

// entrySize is the size in bytes of an entry of a folder of FAT and exFAT.
const entrySize = 32

// entries returns the beginning of a root folder. The label is an entry there, usually the first.
func entries(disk io.ReaderAt, root int64) []byte {
	buf := make([]byte, 128*entrySize)
	n, _ := disk.ReadAt(buf, root) // an error means that there are fewer, or none
	return buf[:n/entrySize*entrySize]
}

// fatLabel returns the label among a folder's entries, or the one in the boot sector: not all systems change that one.
func fatLabel(entries, boot []byte) string {
	for ; len(entries) > 0 && entries[0] != 0; entries = entries[entrySize:] {
		const volume, longName, removed = 0x08, 0x0F, 0xE5
		if attributes := entries[11]; attributes&volume != 0 && attributes&longName != longName && entries[0] != removed {
			return text(entries[:11])
		}
	}
	if label := text(boot); label != "NO NAME" {
		return label
	}
	return ""
}

func exfatLabel(entries []byte) string {
	for ; len(entries) > 0 && entries[0] != 0; entries = entries[entrySize:] {
		const volume, longest = 0x83, 11
		if entries[0] == volume && entries[1] <= longest {
			var units []uint16
			for i := range int(entries[1]) {
				units = append(units, binary.LittleEndian.Uint16(entries[2+2*i:]))
			}
			return string(utf16.Decode(units))
		}
	}
	return ""
}

// text returns a label without what fills its field.
func text(field []byte) string {
	before, _, _ := bytes.Cut(field, []byte{0})
	return strings.TrimRight(string(before), " ")
}
