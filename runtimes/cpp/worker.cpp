// The native side of edgekit.worker's protocol: one .pte file, one JSON document a line on standard input and output.
//
//   worker MODEL.pte THREADS JOB.json OUTPUT...
//
// JOB.json is {"methods": "tokens_1=1,tokens_32=32", "sized": "0.1", "prompt": "5,17", "feeds": {...}}: the method for
// each size of a model with several, and by which input and axis a call's size is told; the prompt of timed texts of a
// language model; and the inputs of timed calls as edgekit.wire writes them, in the model's order. "methods" and
// "prompt" may be empty. OUTPUT... name the model's outputs. It needs ExecuTorch's shared libraries and nothing else:
// no Python, no torch.
#include <executorch/extension/module/module.h>
#include <executorch/runtime/backend/interface.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "language_model.h"
#include "wire.h"

using executorch::extension::Module;
using executorch::runtime::Error;
using executorch::runtime::EValue;
using namespace edgekit;

namespace executorch::extension::threadpool {  // libexecutorch_threadpool.so has it, the wheel's headers do not
class ThreadPool {
 public:
  bool _unsafe_reset_threadpool(uint32_t threads);
};
ThreadPool* get_threadpool();
}  // namespace executorch::extension::threadpool

namespace {

std::string first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

// What follows `key` and a colon in a file of such lines.
std::string entry(const std::string& path, const std::string& key) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    size_t colon = line.find(':');
    if (line.rfind(key, 0) == 0 && colon != line.npos) return line.substr(std::min(line.find_first_not_of(" \t", colon + 1), line.size()));
  }
  return "";
}

std::string number(const std::string& text, double scale) {
  return text.empty() ? "null" : std::to_string(std::atof(text.c_str()) * scale);
}

std::string state() {
  const std::string frequency = "/sys/devices/system/cpu/cpu0/cpufreq/scaling_";
  std::string governor = first_line(frequency + "governor"), cpu = entry("/proc/cpuinfo", "Model");
  utsname name;
  uname(&name);
  bool emulated = access("/etc/edgekit-emulated", F_OK) == 0 || std::getenv("QEMU_CPU");
  std::stringstream out;
  out << "{\"machine\": " << quoted(name.machine) << ", \"system\": " << quoted(std::string(name.sysname) + " " + name.release)
      << ", \"cpu\": " << (cpu.empty() ? "null" : quoted(cpu)) << ", \"cores\": " << std::thread::hardware_concurrency()
      << ", \"python\": \"none\", \"governor\": " << (governor.empty() ? "null" : quoted(governor))
      << ", \"clock_min_hz\": " << number(first_line(frequency + "min_freq"), 1e3)
      << ", \"clock_max_hz\": " << number(first_line(frequency + "max_freq"), 1e3)
      << ", \"clock_now_hz\": " << number(first_line(frequency + "cur_freq"), 1e3)
      << ", \"temperature_c\": " << number(first_line("/sys/class/thermal/thermal_zone0/temp"), 1e-3)
      << ", \"emulated\": " << (emulated ? "true" : "false") << "}";
  return out.str();
}

std::vector<int64_t> numbers(const std::string& text) {
  std::vector<int64_t> found;
  std::stringstream words(text);
  for (std::string word; std::getline(words, word, ',');) found.push_back(std::atoll(word.c_str()));
  return found;
}

// An open model, and what to ask of it.
class Job {
 public:
  Job(const std::string& path, const std::string& line, std::vector<std::string> outputs)
      : outputs(std::move(outputs)), model_(path, Module::LoadMode::File) {
    size_t at = 0;
    std::stringstream methods(field(line, "\"methods\": \"", '"', at));
    for (std::string method; std::getline(methods, method, ',');) {
      methods_.push_back(method.substr(0, method.rfind('=')));
      sizes_.push_back(std::atoll(method.c_str() + method.rfind('=') + 1));
    }
    const std::string sized = field(line, "\"sized\": \"", '"', at);
    input_ = std::atoi(sized.c_str());
    axis_ = std::atoi(sized.c_str() + sized.find('.') + 1);
    prompt = numbers(field(line, "\"prompt\": \"", '"', at));
    sample = parse(line, at);
    for (const std::string& method : methods_.empty() ? std::vector<std::string>{"forward"} : methods_)
      if (Error error = model_.load_method(method); error != Error::Ok)
        throw std::runtime_error("executorch cannot load " + method + ": error " + std::to_string(static_cast<int>(error)));
  }

  std::vector<EValue> call(const Feeds& feeds) {
    auto results = model_.execute(method_for(feeds), std::vector<EValue>(feeds.tensors.begin(), feeds.tensors.end()));
    if (!results.ok()) throw std::runtime_error("executorch could not run the model: error " +
                                                std::to_string(static_cast<int>(results.error())));
    return std::move(results.get());
  }

  // The likeliest tokens after the prompt, and the seconds from the start to each.
  std::pair<std::vector<double>, std::vector<int64_t>> text(int64_t count) {
    Decoder decoder([this](const Feeds& feeds) { return call(feeds); }, sample, outputs, sizes_);
    const TensorPtr& keys = sample.tensors[sample.index("key_0")];
    std::vector<double> times;
    std::vector<int64_t> ids, next = prompt;
    const int64_t most = std::min<int64_t>(count, keys->size(3) - prompt.size());
    const double start = seconds();
    while (static_cast<int64_t>(times.size()) < most) {
      next = {decoder.feed(next)};
      times.push_back(seconds() - start);
      ids.push_back(next[0]);
    }
    return {times, ids};
  }

  const std::vector<std::string> outputs;
  std::vector<int64_t> prompt;
  Feeds sample;

 private:
  std::string method_for(const Feeds& feeds) const {
    if (methods_.empty()) return "forward";
    const int64_t size = feeds.tensors.at(input_)->size(axis_);
    const auto found = std::find(sizes_.begin(), sizes_.end(), size);
    if (found == sizes_.end()) throw std::runtime_error("the model has no method for the size " + std::to_string(size));
    return methods_[found - sizes_.begin()];
  }

  Module model_;
  std::vector<std::string> methods_;
  std::vector<int64_t> sizes_;  // ascending
  size_t input_, axis_;
};

template <typename T>
std::string listed(const std::vector<T>& values) {
  std::stringstream out;
  out.precision(9);
  for (size_t i = 0; i < values.size(); i++) out << (i ? ", " : "") << values[i];
  return "[" + out.str() + "]";
}

void answer(Job& job, const std::string& line) {
  if (line.find("{\"calls\": ") == 0) {
    std::vector<double> times;
    for (int left = std::atoi(line.c_str() + 10); left > 0; left--) {
      double before = seconds();
      job.call(job.sample);
      times.push_back(seconds() - before);
    }
    std::cout << "{\"times_s\": " << listed(times) << "}" << std::endl;
  } else if (line.find("{\"tokens\": ") == 0 && !job.prompt.empty()) {
    const auto [times, ids] = job.text(std::atoll(line.c_str() + 11));
    std::cout << "{\"times_s\": " << listed(times) << ", \"prompt_tokens\": " << job.prompt.size()
              << ", \"ids\": " << listed(ids) << "}" << std::endl;
  } else if (line.find("{\"feeds\": ") == 0) {
    Feeds feeds = parse(line, 0);
    double before = seconds();
    std::vector<EValue> values = job.call(feeds);
    double after = seconds();
    std::cout << "{\"time_s\": " << after - before << ", \"outputs\": {" << shown(values, job.outputs) << "}}" << std::endl;
  } else if (line.find("{\"op_threads\": ") == 0) {
    std::cout << "{\"by\": \"the native runner\", \"reason\": \"it was built without ExecuTorch's event tracer\"}" << std::endl;
  } else if (line.find("{\"energy\": ") == 0) {
    std::cout << "{\"energy\": {\"provenance\": \"unavailable\", \"reason\": \"the native runner reads no meter\"}}" << std::endl;
  } else if (line.find("{\"watch\": ") == 0) {
    std::cout << "{\"reason\": \"the native runner reads no meter\"}" << std::endl;
  } else {
    throw std::runtime_error("the native runner does not know this question");
  }
}

void serve(char** arguments, int count) {
  executorch::extension::threadpool::get_threadpool()->_unsafe_reset_threadpool(std::atoi(arguments[2]));
  const std::string line = first_line(arguments[3]);
  double start = seconds();
  Job job(arguments[1], line, {arguments + 4, arguments + count});
  double loaded = seconds();
  job.call(job.sample);
  double first = seconds();
  std::cout.precision(9);
  std::cout << "{\"load_s\": " << loaded - start << ", \"first_run_s\": " << first - loaded
            << ", \"runtime_version\": \"" EXECUTORCH_VERSION "\", \"state\": " << state() << "}" << std::endl;
  for (std::string line; std::getline(std::cin, line);) answer(job, line);
  long peak = std::atol(entry("/proc/self/status", "VmHWM").c_str()) * 1024;
  std::cout << "{\"peak_rss_bytes\": " << peak << ", \"state\": " << state() << "}" << std::endl;
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 5) {
    std::cerr << "usage: worker MODEL.pte THREADS JOB.json OUTPUT...\n";
    return 2;
  }
  try {
    serve(arguments, count);
  } catch (const std::exception& error) {
    std::cout << "{\"error\": " << quoted(error.what()) << ", \"type\": \"InvalidInput\"}" << std::endl;
    return 1;
  }
}
