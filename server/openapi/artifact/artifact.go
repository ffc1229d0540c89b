// SPDX-License-Identifier: Apache-2.0

// Package artifact is the file format of the embedded OpenAPI documents of the built-in APIs. A file has an index with
// hashes, and every document as JSON and as protobuf, each compressed separately.
//
// The documents have much in common (nearly all of them contain ObjectMeta), so one of them is the compression
// dictionary of the others: 26 MB become one.
package artifact

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/klauspost/compress/zstd"
)

const (
	magic        = "coracleOA1"
	dictionaryID = 1
	// windowSize covers the largest document plus the dictionary, in bytes.
	windowSize = 8 << 20
)

// Blob is the position of a compressed document, counted from the end of the index, and its decompressed size.
type Blob struct {
	Offset, Length, Size int
}

// Document is an OpenAPI v3 document of one group version.
type Document struct {
	Hash           string
	JSON, Protobuf Blob
}

// Section is a piece of the decompressed v2 document. Name is a group version ("apps/v1", "v1"), a group ("apps"), or
// empty for a piece that belongs to none.
type Section struct {
	Name           string
	Offset, Length int
}

// V2 is the OpenAPI v2 document. It is divided into sections, so that paths of group versions that are not served can
// be left out and others inserted.
//
// The JSON sections are members without their braces: those of "definitions", of "parameters", of the document itself,
// then the members of "paths" for each name. Each protobuf section is a complete serialized Document. Concatenated they
// are one Document (concatenation merges messages).
type V2 struct {
	Hash                            string
	JSON, Protobuf                  Blob
	Definitions, Parameters, Header Section
	Paths                           []Section
	ProtobufBase                    Section
	ProtobufPaths                   []Section
	// Names lists the definitions and parameters, one per line.
	Names Blob
}

// Index is the head of the file.
type Index struct {
	// Kubernetes is the version of k8s.io/kubernetes that the documents come from.
	Kubernetes string
	// Dictionary names the document whose JSON is the dictionary.
	Dictionary string
	Documents  map[string]Document
	V2         V2
}

// File is a compressed artifact in memory.
type File struct {
	Index Index
	blobs string
}

// Open reads the index of an artifact. It keeps a reference to data.
func Open(data string) (*File, error) {
	if len(data) < len(magic)+4 || data[:len(magic)] != magic {
		return nil, errors.New("not an OpenAPI artifact")
	}
	rest := data[len(magic):]
	n := int(binary.BigEndian.Uint32([]byte(rest[:4])))
	if len(rest) < 4+n {
		return nil, errors.New("the OpenAPI artifact is cut short")
	}
	f := &File{blobs: rest[4+n:]}
	if err := json.Unmarshal([]byte(rest[4:4+n]), &f.Index); err != nil {
		return nil, fmt.Errorf("reading the index of the OpenAPI artifact: %w", err)
	}
	return f, nil
}

// Read decompresses a blob into memory that the caller owns.
func (f *File) Read(b Blob) ([]byte, error) {
	dictionary := f.Index.Documents[f.Index.Dictionary].JSON
	if b == dictionary {
		return f.decompress(b, nil)
	}
	// The dictionary is decompressed each time: documents are requested rarely, and it would stay in memory for good.
	dict, err := f.decompress(dictionary, nil)
	if err != nil {
		return nil, fmt.Errorf("reading the dictionary of the OpenAPI artifact: %w", err)
	}
	return f.decompress(b, dict)
}

func (f *File) decompress(b Blob, dict []byte) ([]byte, error) {
	if b.Offset < 0 || b.Length < 0 || b.Offset+b.Length > len(f.blobs) {
		return nil, errors.New("the OpenAPI artifact is cut short")
	}
	options := []zstd.DOption{zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(windowSize)}
	if dict != nil {
		options = append(options, zstd.WithDecoderDictRaw(dictionaryID, dict))
	}
	d, err := zstd.NewReader(nil, options...)
	if err != nil {
		return nil, fmt.Errorf("decompressing an OpenAPI document: %w", err)
	}
	defer d.Close()
	out, err := d.DecodeAll([]byte(f.blobs[b.Offset:b.Offset+b.Length]), make([]byte, 0, b.Size))
	if err != nil {
		return nil, fmt.Errorf("decompressing an OpenAPI document: %w", err)
	}
	return out, nil
}

// Writer builds an artifact. Only the generator uses it.
type Writer struct {
	Index Index
	dict  []byte
	blobs []byte
}

// NewWriter begins an artifact. dict is the JSON of the document with the name dictionary.
func NewWriter(kubernetes, dictionary string, dict []byte) *Writer {
	return &Writer{dict: dict, Index: Index{Kubernetes: kubernetes, Dictionary: dictionary, Documents: map[string]Document{}}}
}

// Add compresses data.
func (w *Writer) Add(data []byte) (Blob, error) { return w.add(data, w.dict) }

// AddDictionary compresses the dictionary itself.
func (w *Writer) AddDictionary() (Blob, error) { return w.add(w.dict, nil) }

func (w *Writer) add(data, dict []byte) (Blob, error) {
	options := []zstd.EOption{zstd.WithEncoderLevel(zstd.SpeedBestCompression), zstd.WithWindowSize(windowSize),
		zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(true)}
	if dict != nil {
		options = append(options, zstd.WithEncoderDictRaw(dictionaryID, dict))
	}
	e, err := zstd.NewWriter(nil, options...)
	if err != nil {
		return Blob{}, fmt.Errorf("compressing an OpenAPI document: %w", err)
	}
	b := Blob{Offset: len(w.blobs), Size: len(data)}
	w.blobs = e.EncodeAll(data, w.blobs)
	b.Length = len(w.blobs) - b.Offset
	return b, e.Close()
}

// Bytes returns the finished file.
func (w *Writer) Bytes() ([]byte, error) {
	index, err := json.Marshal(w.Index)
	if err != nil {
		return nil, fmt.Errorf("writing the index of the OpenAPI artifact: %w", err)
	}
	out := append([]byte(magic), binary.BigEndian.AppendUint32(nil, uint32(len(index)))...)
	out = append(out, index...)
	return append(out, w.blobs...), nil
}
