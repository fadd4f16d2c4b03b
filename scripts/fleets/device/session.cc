// Serves one session of TVM's RPC on a socket, then ends: the emulated part of an emulated device.
//
//     session SOCKET
//
// SOCKET is the number of an open socket whose greetings are over; `serve.py --session` starts this program so. Files
// go into the working folder. Objects (.tar) are linked with the compiler that the variable CXX names.
#include <sys/socket.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <string>

#include "runtime/rpc/rpc_endpoint.h"

namespace {

using tvm::ffi::Function;

class Socket final : public tvm::runtime::RPCChannel {
 public:
  explicit Socket(int number) : number_(number) {}
  size_t Send(const void* data, size_t n_bytes) final {
    return Done([&] { return send(number_, data, n_bytes, MSG_NOSIGNAL); });
  }
  size_t Recv(void* data, size_t n_bytes) final {
    return Done([&] { return recv(number_, data, n_bytes, 0); });
  }

 private:
  template <typename Call>
  size_t Done(Call call) {
    ssize_t n;
    do {
      n = call();
    } while (n < 0 && errno == EINTR);
    if (n < 0) TVM_FFI_THROW(OSError) << "the socket " << number_ << ": " << std::strerror(errno);
    return static_cast<size_t>(n);
  }
  int number_;
};

bool EndsWith(const std::string& text, const std::string& end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

std::string Path(const std::string& name) { return "./" + name; }

// Make a library of objects; TVM's own server does the same in Python.
std::string Link(const std::string& archive) {
  const char* compiler = std::getenv("CXX");
  std::string library = archive + ".so", folder = archive + ".objects";
  std::string command = "mkdir '" + folder + "' && tar -xf '" + archive + "' -C '" + folder + "' && " +
                        (compiler != nullptr ? compiler : "c++") + " -shared -fPIC -o '" + library + "' '" + folder +
                        "'/*.o";
  if (std::system(command.c_str()) != 0) TVM_FFI_THROW(RuntimeError) << "linking failed: " << command;
  return library;
}

tvm::ffi::Module Load(const std::string& name) {
  std::string path = Path(name);
  return tvm::ffi::Module::LoadFromFile(EndsWith(path, ".tar") ? Link(path) : path);
}

// Fill what a candidate is timed with: numbers from 1 to 2, which neither overflow nor become denormal.
template <typename T>
void Fill(DLTensor* tensor) {
  int64_t n = std::accumulate(tensor->shape, tensor->shape + tensor->ndim, int64_t{1}, std::multiplies<int64_t>());
  std::minstd_rand random;
  std::generate_n(static_cast<T*>(tensor->data), n, [&] { return std::uniform_real_distribution<T>(1, 2)(random); });
}

void FillForMeasure(DLTensor* tensor) {
  if (tensor->dtype.code != kDLFloat || tensor->dtype.bits < 32) {
    TVM_FFI_THROW(TypeError) << "only float32 and float64 can be filled here";
  }
  tensor->dtype.bits == 32 ? Fill<float>(tensor) : Fill<double>(tensor);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  Function::SetGlobal("tvm.rpc.server.workpath", Function::FromTyped(Path));
  Function::SetGlobal("tvm.rpc.server.load_module", Function::FromTyped(Load));
  Function::SetGlobal("tvm.contrib.random.random_fill_for_measure", Function::FromTyped(FillForMeasure));
  auto socket = std::make_unique<Socket>(std::atoi(argv[1]));
  tvm::runtime::RPCEndpoint::Create(std::move(socket), "session", "")->ServerLoop();
  return 0;
}
