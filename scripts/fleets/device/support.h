// What the sources of TVM's runtime include and TVM's wheel does not carry: streams, a buffer, an arena.
//
// The wheel has the sources of the runtime, but not their neighbours `support`. These are written anew from how the
// runtime uses them, no more than it uses. What goes over a stream has TVM's form: numbers as they lie in memory, and
// in front of a string or a list its length in 8 bytes.
#ifndef CHAMELEON_FLEETS_DEVICE_SUPPORT_H_
#define CHAMELEON_FLEETS_DEVICE_SUPPORT_H_

#include <tvm/ffi/container/array.h>
#include <tvm/ffi/extra/base64.h>
#include <tvm/ffi/string.h>

#include <algorithm>
#include <cctype>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace tvm {
namespace support {

class Stream;

// How values of a type are written and read; the runtime adds forms for its own types.
template <typename T, typename = void>
struct Serializer;

class Stream {
 public:
  virtual ~Stream() = default;
  virtual size_t Read(void* data, size_t n_bytes) = 0;
  virtual size_t Write(const void* data, size_t n_bytes) = 0;

  template <typename T>
  void Write(const T& value) {
    Serializer<T>::Write(this, value);
  }

  template <typename T>
  bool Read(T* value) {
    return Serializer<T>::Read(this, value);
  }

  template <typename T>
  void WriteArray(const T* values, size_t n) {
    if constexpr (std::is_trivially_copyable_v<T>) {
      Write(static_cast<const void*>(values), n * sizeof(T));
    } else {
      for (size_t i = 0; i < n; ++i) Write(values[i]);
    }
  }

  template <typename T>
  bool ReadArray(T* values, size_t n) {
    if constexpr (std::is_trivially_copyable_v<T>) {
      return Read(static_cast<void*>(values), n * sizeof(T)) == n * sizeof(T);
    } else {
      return std::all_of(values, values + n, [this](T& value) { return Read(&value); });
    }
  }
};

template <typename T>
struct Serializer<T, std::enable_if_t<std::is_trivially_copyable_v<T>>> {
  static constexpr bool enabled = true;
  static void Write(Stream* stream, const T& value) { stream->WriteArray(&value, 1); }
  static bool Read(Stream* stream, T* value) { return stream->ReadArray(value, 1); }
};

// Strings and lists that lie in memory in one piece: a length, then the elements.
template <typename List>
struct ListSerializer {
  static constexpr bool enabled = true;
  static void Write(Stream* stream, const List& list) {
    stream->Write(static_cast<uint64_t>(list.size()));
    stream->WriteArray(list.data(), list.size());
  }
  static bool Read(Stream* stream, List* list) {
    uint64_t n;
    if (!stream->Read(&n)) return false;
    list->resize(n);
    return stream->ReadArray(list->data(), n);
  }
};

template <>
struct Serializer<std::string> : ListSerializer<std::string> {};

template <typename T>
struct Serializer<std::vector<T>> : ListSerializer<std::vector<T>> {};

template <>
struct Serializer<ffi::String> {
  static constexpr bool enabled = true;
  static void Write(Stream* stream, const ffi::String& text) { stream->Write(std::string(text)); }
  static bool Read(Stream* stream, ffi::String* text) {
    std::string found;
    if (!stream->Read(&found)) return false;
    *text = std::move(found);
    return true;
  }
};

template <typename T>
struct Serializer<ffi::Array<T>> {
  static constexpr bool enabled = true;
  static void Write(Stream* stream, const ffi::Array<T>& list) {
    stream->Write(std::vector<T>(list.begin(), list.end()));
  }
  static bool Read(Stream* stream, ffi::Array<T>* list) {
    std::vector<T> found;
    if (!stream->Read(&found)) return false;
    *list = ffi::Array<T>(found.begin(), found.end());
    return true;
  }
};

class BytesOutStream final : public Stream {
 public:
  using Stream::Read;
  using Stream::Write;
  explicit BytesOutStream(std::string* bytes) : bytes_(bytes) {}
  size_t Read(void*, size_t) final { return 0; }
  size_t Write(const void* data, size_t n_bytes) final {
    bytes_->append(static_cast<const char*>(data), n_bytes);
    return n_bytes;
  }

 private:
  std::string* bytes_;
};

class BytesInStream final : public Stream {
 public:
  using Stream::Read;
  using Stream::Write;
  explicit BytesInStream(const std::string& bytes) : next_(bytes.data()), left_(bytes.size()) {}
  explicit BytesInStream(const ffi::Bytes& bytes) : next_(bytes.data()), left_(bytes.size()) {}
  size_t Read(void* data, size_t n_bytes) final {
    n_bytes = std::min(n_bytes, left_);
    if (n_bytes != 0) std::memcpy(data, next_, n_bytes);
    next_ += n_bytes;
    left_ -= n_bytes;
    return n_bytes;
  }
  size_t Write(const void*, size_t) final { return 0; }

 private:
  const char* next_;
  size_t left_;
};

// Encodes what is written to it, all at once at the end.
class Base64OutStream final : public Stream {
 public:
  using Stream::Read;
  using Stream::Write;
  explicit Base64OutStream(Stream* to) : to_(to) {}
  size_t Read(void*, size_t) final { return 0; }
  size_t Write(const void* data, size_t n_bytes) final { return plain_.Write(data, n_bytes); }
  void Finish() {
    ffi::String encoded = ffi::Base64Encode(ffi::Bytes(bytes_));
    to_->WriteArray(encoded.data(), encoded.size());
  }

 private:
  std::string bytes_;
  BytesOutStream plain_{&bytes_};
  Stream* to_;
};

// Reads and decodes all of a stream when it is positioned.
class Base64InStream final : public Stream {
 public:
  using Stream::Read;
  using Stream::Write;
  explicit Base64InStream(Stream* from) : from_(from) {}
  void InitPosition() {
    std::string encoded;
    for (char next; from_->Read(&next, 1) == 1;) encoded.push_back(next);
    bytes_ = ffi::Base64Decode(ffi::String(encoded));
    plain_ = std::make_unique<BytesInStream>(bytes_);
  }
  size_t Read(void* data, size_t n_bytes) final { return plain_->Read(data, n_bytes); }
  size_t Write(const void*, size_t) final { return 0; }

 private:
  Stream* from_;
  ffi::Bytes bytes_;
  std::unique_ptr<BytesInStream> plain_;
};

// Bytes that come in at the back and go out at the front.
class RingBuffer {
 public:
  size_t bytes_available() const { return bytes_.size() - front_; }
  void Reserve(size_t n_bytes) { bytes_.reserve(front_ + n_bytes); }
  void Write(const void* data, size_t n_bytes) {
    MakeRoom();
    bytes_.append(static_cast<const char*>(data), n_bytes);
  }
  void Read(void* data, size_t n_bytes) {
    std::memcpy(data, bytes_.data() + front_, n_bytes);
    front_ += n_bytes;
  }

  // Give at most so many bytes to a function that says how many it took.
  template <typename Take>
  size_t ReadWithCallback(Take take, size_t n_bytes) {
    size_t taken = take(bytes_.data() + front_, std::min(n_bytes, bytes_available()));
    front_ += taken;
    return taken;
  }

  // Let a function write at most so many bytes; it says how many they are.
  template <typename Give>
  size_t WriteWithCallback(Give give, size_t n_bytes) {
    MakeRoom();
    size_t before = bytes_.size();
    bytes_.resize(before + n_bytes);
    size_t given = give(bytes_.data() + before, n_bytes);
    bytes_.resize(before + given);
    return given;
  }

 private:
  void MakeRoom() {
    bytes_.erase(0, front_);
    front_ = 0;
  }
  std::string bytes_;
  size_t front_ = 0;
};

// Memory that is given back all at once.
class Arena {
 public:
  template <typename T>
  T* allocate_(int n) {
    blocks_.push_back(std::make_unique<char[]>(std::max<size_t>(n * sizeof(T), 1)));
    return reinterpret_cast<T*>(blocks_.back().get());
  }
  void RecycleAll() { blocks_.clear(); }

 private:
  std::vector<std::unique_ptr<char[]>> blocks_;
};

inline bool StartsWith(const ffi::String& text, const char* prefix) {
  size_t n = std::strlen(prefix);
  return text.size() >= n && std::memcmp(text.data(), prefix, n) == 0;
}

inline bool IsNumber(const std::string& text) {
  return !text.empty() && std::all_of(text.begin(), text.end(), [](unsigned char c) { return std::isdigit(c); });
}

// A mark for NVIDIA's profiler: nothing without CUDA.
class NVTXScopedRange {
 public:
  explicit NVTXScopedRange(const std::string&) {}
};

}  // namespace support
}  // namespace tvm

#endif  // CHAMELEON_FLEETS_DEVICE_SUPPORT_H_
